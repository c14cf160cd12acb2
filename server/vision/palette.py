"""The colour of each class, the same in annotated images and on the page.

Classes 0 to 7 have colours that people with any common colour blindness tell apart. Each further
one has the hue that is a golden angle past the last one's, so that no two are near until there are
many, in three lightnesses and two saturations in turn. In CSS, of the class id n = 8 + k:

    hsl(k * 137.508 mod 360, [90%, 50%][k mod 2], [28%, 58%, 75%][k mod 3])

Source:
    M. Okabe, K. Ito, "Color Universal Design", 2008, in another order, without black, with purple.
"""

import colorsys

BASE_RGB = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (230, 159, 0), (86, 180, 233), (120, 60, 160), (240, 228, 66),
)  # fmt: skip
GOLDEN_ANGLE_DEGREES = 137.508
SATURATIONS = (0.9, 0.5)
LIGHTNESSES = (0.28, 0.58, 0.75)
BLACK_RGB = (0, 0, 0)
WHITE_RGB = (255, 255, 255)

Colour = tuple[int, int, int]


def class_colour(class_id: int) -> Colour:
    """Red, green and blue of a class, 0..255.

    Args:
        class_id: >= 0.
    """
    if class_id < len(BASE_RGB):
        return BASE_RGB[class_id]
    k = class_id - len(BASE_RGB)
    red, green, blue = colorsys.hls_to_rgb(
        k * GOLDEN_ANGLE_DEGREES % 360 / 360,
        LIGHTNESSES[k % len(LIGHTNESSES)],
        SATURATIONS[k % len(SATURATIONS)],
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast on a colour.

    Source:
        WCAG 2.2, relative luminance and contrast ratio; both are equal at a luminance of 0.179.
    """
    return BLACK_RGB if _luminance(background) > 0.179 else WHITE_RGB


def _luminance(colour: Colour) -> float:
    linear = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    )
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
