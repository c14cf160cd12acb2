"""What of a PNG file its pixels need, within bounds on what reading it may cost.

libpng inflates compressed texts that nobody asked for (a file of 7 MB took 30 s), writes a line
to stderr for each odd chunk, and inflates pixels past the last row (2 MB took 4.5 s).
"""

import struct
import zlib
from collections.abc import Iterable

from server.errors import UndecodableImage

_SIGNATURE_BYTES = 8
_MAX_CHUNKS = 100_000  # encoders cut the pixels into chunks of 8 KB or more
_ANCILLARY_KEPT = frozenset({b"tRNS", b"eXIf"})  # transparency and orientation
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# 1 byte inflates to 1,032 at most, so these take 2.5 s: as much as the dearest image of
# max_image_pixels. Checking doubles the time of inflating, which small photos are spared.
_UNCHECKED_BYTES = 2**20
_EXCESS_BYTES = 2**24


def essential_png(data: bytes) -> bytes:
    """Leaves the chunks out that the first image's pixels and orientation don't need.

    So the frames of an animation after the default image go as well.

    Args:
        data: a file that begins as a PNG file does.

    Returns:
        A PNG file of the same pixels; `data` itself where nothing is left out.

    Raises:
        UndecodableImage: a chunk or the end is cut off, there are very many chunks, or the pixel
            data inflates to far more than the pixels of its header.
    """
    view = memoryview(data)
    kept, pixels = [view[:_SIGNATURE_BYTES]], []
    seen: set[bytes] = set()
    position = _SIGNATURE_BYTES
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(data):
            raise UndecodableImage("the PNG image is cut off or corrupt")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise UndecodableImage("the PNG image is cut off or corrupt")
        critical = not kind[0] & 0x20
        if critical or (kind in _ANCILLARY_KEPT and kind not in seen):
            kept.append(view[position:end])
        if kind == b"IDAT":
            pixels.append(view[position + 8 : end - 4])
        seen.add(kind)
        position = end
        if kind == b"IEND":
            break
    else:
        raise UndecodableImage(f"the PNG image has over {_MAX_CHUNKS} chunks")
    if sum(map(len, pixels)) > _UNCHECKED_BYTES:
        _refuse_excess(pixels, _inflated_bytes(data))
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _inflated_bytes(data: bytes) -> int:
    """Bytes of all rows, each with its filter byte, by the header."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = _SAMPLES.get(colour, 4) * depth
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -((left - width) // step_x), -((top - height) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _refuse_excess(pixels: Iterable[memoryview], expected: int) -> None:
    inflater, inflated = zlib.decompressobj(), 0
    for compressed in pixels:
        rest: bytes | memoryview = compressed
        while rest and not inflater.eof:
            try:
                inflated += len(inflater.decompress(rest, 2**20))
            except zlib.error:
                return  # libpng will stop here too
            if inflated > expected + _EXCESS_BYTES:
                raise UndecodableImage("the PNG image holds far more data than pixels")
            rest = inflater.unconsumed_tail
