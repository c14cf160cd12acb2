"""What a TIFF file says of itself in its first directory."""

import struct

import numpy as np

from server.errors import UndecodableImage

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _BITS = 256, 257, 322, 323, 258
_PHOTOMETRIC, _LOG_LUV = 262, 32845  # decodes to floats, in 24 bytes a pixel
_OFFSETS, _BYTES = (273, 324), (279, 325)  # of strips, of tiles
_SINGLE = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _PHOTOMETRIC)
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
# Bytes of one value, by kind.
_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1)) | dict.fromkeys(
    (16, 17, 18), 8
)
_MAX_BITS = 16  # a file of 218 KB and 64-bit samples took 10 s and 3 GB to decode
# Strips may share bytes, and each is read anew: a file of 9 MB took 28 s to decode.
_MAX_TIMES_READ = 4


def tiff_size(data: bytes) -> tuple[int, int, int]:
    """Reads the first directory.

    Returns:
        Width and height in pixels, and the pixels of a tile, 0 where there are none.

    Raises:
        UndecodableImage: samples are floats or have more than 16 bits, or strips, tiles or values
            of tags overlap.
        IndexError, struct.error: the header is cut off or corrupt.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[:4]
    offset: int = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    count: int = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, offset)[0]
    if count > 0xFFFF:  # what the smaller form can hold
        raise IndexError("too many entries")
    form, size, inline = (f"{order}HHQ", 20, 8) if big else (f"{order}HHI", 12, 4)
    entries: dict[int, tuple[int, int, int]] = {}  # tag -> kind, length, where
    first = offset + (8 if big else 2)
    value_bytes = 0
    for position in range(first, first + count * size, size):
        tag, kind, length = struct.unpack_from(form, data, position)
        taken = length * _SIZES.get(kind, 0)
        # What is not all there is not kept.
        if taken > inline and taken <= len(data):
            value_bytes += taken
        if tag in _WANTED:
            if tag in entries:
                raise IndexError(f"tag {tag} is there twice")
            at = position + size - inline
            if kind in _NUMBERS and length * struct.calcsize(_NUMBERS[kind]) > inline:
                at = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at)[0]
            entries[tag] = kind, length, at

    def number(tag: int) -> int:
        if tag not in entries:
            return 0
        kind, length, at = entries[tag]
        # libtiff also takes signed kinds: a size must not be read in two ways.
        if kind not in _NUMBERS or (tag in _SINGLE and length != 1):
            raise IndexError(f"tag {tag} has no number")
        value: int = struct.unpack_from(order + _NUMBERS[kind], data, at)[0]
        return value

    # Each is kept apart, also of tags that mean nothing: 20 that shared 5 MB took 105 MB.
    if value_bytes > len(data):
        raise UndecodableImage("the values of the TIFF image's tags overlap")
    if (bits := number(_BITS)) > _MAX_BITS:
        raise UndecodableImage(f"the TIFF image has {bits}-bit samples, served are 8 and 16 bit")
    if number(_PHOTOMETRIC) == _LOG_LUV:
        raise UndecodableImage("the TIFF image has float samples, served are 8 and 16 bit")
    if _bytes_read(data, entries, order) > _MAX_TIMES_READ * len(data):
        raise UndecodableImage("the strips or tiles of the TIFF image overlap")
    return number(_WIDTH), number(_HEIGHT), number(_TILE_WIDTH) * number(_TILE_HEIGHT)


_WANTED = frozenset({*_SINGLE, _BITS, *_OFFSETS, *_BYTES})


def _bytes_read(data: bytes, entries: dict[int, tuple[int, int, int]], order: str) -> int:
    """Bytes of all strips and tiles together; where it isn't said, each may be the whole file."""
    total = 0
    for offsets, sizes in zip(_OFFSETS, _BYTES, strict=True):
        strips = entries[offsets][1] if offsets in entries else 0
        if sizes in entries:
            kind, length, at = entries[sizes]
            if kind in _NUMBERS:
                form = np.dtype(order + _NUMBERS[kind])
                available = max(0, len(data) - at) // form.itemsize
                values = np.frombuffer(data, form, min(length, available), min(at, len(data)))
                # A file may be longer than their type counts.
                most = min(len(data), int(np.iinfo(form).max))
                total += int(np.minimum(values, most).sum(dtype=np.uint64))
                strips = 0
        total += strips * len(data)
    return total
