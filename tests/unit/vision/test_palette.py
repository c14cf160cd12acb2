import itertools

import numpy as np
from numpy.typing import NDArray

from server.vision.palette import BLACK_RGB, WHITE_RGB, class_colour, text_colour

Vector = NDArray[np.float64]
TO_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
# G. Machado and others, 2009, severity 1.
DEUTERANOPIA = np.array([
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
])  # fmt: skip


def linear(colour: tuple[int, int, int]) -> Vector:
    value = np.array(colour) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(light: Vector) -> Vector:
    lab: Vector = TO_LAB @ np.cbrt(TO_CONES @ np.clip(light, 0, 1))
    return lab


def least_distance(lights: list[Vector]) -> float:
    pairs = itertools.combinations(map(oklab, lights), 2)
    return min(float(np.linalg.norm(a - b)) for a, b in pairs)


def test_the_first_24_classes_are_told_apart() -> None:
    assert least_distance([linear(class_colour(each)) for each in range(24)]) > 0.06


def test_the_first_classes_are_told_apart_without_the_green_cones() -> None:
    assert least_distance([DEUTERANOPIA @ linear(class_colour(i)) for i in range(6)]) > 0.07


def test_no_two_of_80_classes_share_a_colour() -> None:
    assert len({class_colour(each) for each in range(80)}) == 80


def test_text_has_the_contrast_that_small_letters_need() -> None:
    for colour in map(class_colour, range(1000)):
        lights = [
            float(linear(each) @ (0.2126, 0.7152, 0.0722)) for each in (colour, text_colour(colour))
        ]
        assert (max(lights) + 0.05) / (min(lights) + 0.05) > 4.5
        assert text_colour(colour) in (BLACK_RGB, WHITE_RGB)
