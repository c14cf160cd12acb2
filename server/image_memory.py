"""How much memory a picture takes at most while it is decoded, from its header.

Measured with OpenCV 5, with large blocks given back (`server.memory.return_large_blocks`);
`tests/unit/test_image_memory.py` does it again.
The output counts twice, as OpenCV hands it over to numpy, or turns it upright, in a copy.
"""

from server.image_header import ImageHeader
from server.memory import LARGE_BLOCK_BYTES

_OUTPUT_BYTES = 3.5  # a pixel's red, green and blue, and a sixth for what is allocated by rows
# Bytes a pixel at the peak: PNG and BMP 6.3, WebP 11.1 (animated), TIFF 16.1 (16 bits, alpha).
_BYTES_A_PIXEL = {"PNG": 6.5, "BMP": 6.5, "WEBP": 12.0, "TIFF": 16.5}
_COSTLIEST_BYTES_A_PIXEL = 17.0
# To draw into an image and encode it as a PNG (8.8).
_PICTURE_BYTES_A_PIXEL = 10.0
# Times that the file is there once more: one that is all texts and profiles, or one strip, or one
# chunk. A PNG, a WebP and a TIFF have what they read beside what they keep.
_COPIES = {"JPEG": 1, "PNG": 2, "WEBP": 2, "TIFF": 2, "BMP": 0}
_ROWS_BYTES = 2 * 2**20
_SMALL_PARTS_BYTES = 3 * LARGE_BLOCK_BYTES


def decoding_bytes(data: bytes, header: ImageHeader, reduction: int = 1) -> int:
    """Memory that decoding takes beside the file, at most.

    Args:
        data: the whole file.
        header: of it.
        reduction: 1, 2, 4 or 8: a JPEG is decoded at this part of its size.
    """
    kept = header.coefficient_bytes
    if header.format == "JPEG":
        output = _OUTPUT_BYTES * header.pixels / reduction**2
        # What the scans bring together is kept for all of the picture, until the last has come;
        # and where a colour's part is small, the C library keeps it longer.
        needed = output + max(output + min(kept, _SMALL_PARTS_BYTES), kept)
    else:
        needed = _BYTES_A_PIXEL[header.format] * header.pixels + kept
    return int(needed) + _COPIES[header.format] * len(data) + _ROWS_BYTES


def picture_bytes(data: bytes, header: ImageHeader) -> int:
    """Memory that it takes at most to decode an image, then draw into it and encode it."""
    drawing = int(_PICTURE_BYTES_A_PIXEL * header.width * header.height) + _ROWS_BYTES
    return max(decoding_bytes(data, header), drawing)


def costliest_bytes(pixels: int) -> int:
    """What an image of so many pixels takes at most that is no file of odd contents."""
    return int(_COSTLIEST_BYTES_A_PIXEL * pixels) + _ROWS_BYTES
