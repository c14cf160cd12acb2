"""Which of two kinds of picture a client would rather have, by its `Accept` header."""

JPEG, PNG = "image/jpeg", "image/png"
# What stands for a type, from the exact one to any: the most exact that is named decides.
RANGES = {kind: (kind, "image/*", "*/*") for kind in (JPEG, PNG)}


def prefers_png(accept: str) -> bool:
    """Whether a PNG is wanted more than a JPEG; where both are equal, it is the smaller JPEG.

    Args:
        accept: the header; several are joined by commas. Types with parameters count as without,
            and what can't be read as if it were not there. A client that wants neither gets a
            JPEG: there is nothing else, and a picture is what it asked for by `format=image`.

    Source:
        RFC 9110, section 12.5.1.
    """
    qualities: dict[str, float] = {}
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        quality = _quality(parameters)
        if quality is not None:
            qualities[media_range] = max(quality, qualities.get(media_range, 0.0))
    png, jpeg = (
        next((qualities[each] for each in RANGES[kind] if each in qualities), 0.0)
        for kind in (PNG, JPEG)
    )
    return png > jpeg


def _quality(parameters: list[str]) -> float | None:
    """0 to 1; None where it is no such number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
            return quality if 0 <= quality <= 1 else None
    return 1.0
