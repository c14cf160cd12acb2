"""The orientation that a JPEG's EXIF block asks for."""

import struct
from collections.abc import Iterator

from server.jpeg_header import START_OF_SCAN, jpeg_segments

_APP1, _EXIF = 0xE1, b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3


def jpeg_orientation(data: bytes) -> int | None:
    """Reads how a picture has to be turned.

    Args:
        data: a whole JPEG file.

    Returns:
        1..8, the EXIF value; 1 where the file has none. None where the block is odd in any way,
        so that two readers might see different values in it.
    """
    try:
        blocks = list(_exif_blocks(data))
        if not blocks:
            return 1
        if len(blocks) > 1 or not blocks[0].startswith(_EXIF):
            return None
        return _orientation(blocks[0][len(_EXIF) :])
    except (struct.error, IndexError):
        return None


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    for marker, position in jpeg_segments(data):
        if marker == START_OF_SCAN:
            return
        (length,) = struct.unpack_from(">H", data, position)
        if marker == _APP1 and data[position + 2 : position + 6] == _EXIF[:4]:
            yield data[position + 2 : position + length]


def _orientation(tiff: bytes) -> int | None:
    """The tag in the first directory of a TIFF structure; 1 where it is missing."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    values = []
    for i in range(count):
        tag, kind, length, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * i)
        if tag == _ORIENTATION:
            values.append(value if (kind, length) == (_SHORT, 1) and 1 <= value <= 8 else None)
    return values[0] if len(values) == 1 else None if values else 1
