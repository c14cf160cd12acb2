"""Image files of the kinds that OpenCV does not write."""

import io

from PIL import Image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as Pillow saves it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
