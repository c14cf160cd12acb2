"""What a JPEG file declares about itself, and what of it is refused before it is decoded.

The file is walked by libjpeg-turbo's own rules (jdmarker.c, `read_markers` and
`jpeg_resync_to_restart`), up to the end of the first image: a walk that skipped what the decoder
reads would count one scan where the decoder runs a thousand.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import UndecodableImage, UnsupportedImage

START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Frame headers, by what they announce: Huffman baseline, extended and progressive; arithmetic
# sequential and progressive.
_SERVED_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_PROGRESSIVE, _ARITHMETIC = (0xC2, 0xCA), (0xC9, 0xCA)
# libjpeg decodes SOF3 and SOF11 whole, whatever the scale: 75 bytes took 431 MB and 1.5 s. Of
# the hierarchical ones it decodes none.
_OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
}
# Markers that no encoder writes. Where a restart marker is due, libjpeg looks for the next marker
# *inside* of a segment 0x02..0xBF, so that scans in there are decoded; the others it does not know.
_NEVER_WRITTEN = frozenset([*range(0x02, 0xC0), 0xC8, 0xDE, 0xDF, *range(0xF0, 0xFE)])
_MAX_SCANS, _MAX_SEGMENTS = 100, 10_000
# Each scan is a pass over all pixels: 20 times the default of max_image_pixels.
MAX_SCANNED_PIXELS = 10**9
# 0x00 is a 0xFF among the pixels, 0x01 and 0xD0..0xD8 stand alone, 0xFF is a fill byte.
_SEGMENT_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")

_APP1, _EXIF = 0xE1, b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The frame header of a JPEG file, and how many scans follow it.

    Attributes:
        width, height: pixels as stored, before EXIF orientation; >= 0.
        scans: passes that the decoder makes over the pixels; 0 where the file ends before one.
        samples: of all components, subsampled ones for what they are; 0 where the components are
            cut off or corrupt.
        coefficient_bytes: what libjpeg keeps of all scans until the last has come; 0 where there
            is only one.
        arithmetic: how it is coded; else with Huffman codes.
    """

    width: int
    height: int
    scans: int
    samples: int
    coefficient_bytes: int
    arithmetic: bool = False


def read_jpeg(data: bytes) -> JpegHeader:
    """Reads the markers of a JPEG file, without its pixels.

    Raises:
        UnsupportedImage: it is lossless or hierarchical, or has samples of other than 8 bits.
        UndecodableImage: it has a marker that no encoder writes.
        IndexError, struct.error: the header is cut off or corrupt.
    """
    frame, scans = None, []
    for marker, position in jpeg_segments(data):
        if marker == START_OF_SCAN:
            scans.append(position)
        elif marker in _OTHER_FRAMES:
            raise UnsupportedImage(
                f"the JPEG image is {_OTHER_FRAMES[marker]} (SOF{marker - 0xC0}); served are "
                "baseline, extended and progressive JPEG, Huffman or arithmetic coded"
            )
        elif marker in _SERVED_FRAMES and frame is None and not scans:
            frame = marker, position
    if frame is None:
        raise IndexError("no frame header before the pixels")
    marker, position = frame
    bits, height, width = struct.unpack_from(">BHH", data, position + 2)
    if bits != 8:
        raise UnsupportedImage(f"the JPEG image has {bits}-bit samples, served are 8 bit")
    factors = _sampling_factors(data, position)
    if not factors:  # its size is known all the same, and may be over a limit
        return JpegHeader(width, height, len(scans), samples=0, coefficient_bytes=0)
    across, down = max(x for x, _ in factors), max(y for _, y in factors)
    blocks = -(-width // (8 * across)) * -(-height // (8 * down))
    several = marker in _PROGRESSIVE or any(data[at + 2] != len(factors) for at in scans[:1])
    return JpegHeader(
        width,
        height,
        scans=len(scans),
        samples=sum(-(-width * height * x * y // (across * down)) for x, y in factors),
        coefficient_bytes=2 * 64 * blocks * sum(x * y for x, y in factors) if several else 0,
        arithmetic=marker in _ARITHMETIC,
    )


def refuse_costly_jpeg(header: JpegHeader, data_bytes: int) -> None:
    """Refuses a file that takes far more work than its pixels, or can't hold them.

    Args:
        header: of the file.
        data_bytes: its length.

    Raises:
        UndecodableImage: it has very many scans, too few bytes for its size, or no components.
    """
    if header.samples < 1:
        raise UndecodableImage("the JPEG header is cut off or corrupt")
    pixels = header.width * header.height
    # A progressive file of 105 KB with 209 scans took 2.8 s to decode; usual are 10.
    limit = min(_MAX_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
    if header.scans > limit:
        raise UndecodableImage(
            f"the JPEG image has {header.scans} scans, the limit at {pixels} pixels is {limit}"
        )
    # A Huffman code takes a bit or more for each block of 8 x 8 samples, an arithmetic code of the
    # poorest photograph 0.4. What is missing would be grey, and cost as much as an image.
    if header.samples // 64 > 8 * data_bytes * (8 if header.arithmetic else 1):
        raise UndecodableImage(f"the JPEG image is cut off: {data_bytes} bytes for {pixels} pixels")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields each marker and where its segment starts, up to the end of the first image.

    Raises:
        UndecodableImage: a marker is one that no encoder writes.
        IndexError: there are very many.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        match = _SEGMENT_MARKER.search(data, position)
        if match is None or match[1][0] == _END_OF_IMAGE or match.end() + 2 > len(data):
            return
        marker = match[1][0]
        if marker in _NEVER_WRITTEN:
            raise UndecodableImage(f"the JPEG image has a marker 0xFF{marker:02X}: it is corrupt")
        yield marker, match.end()
        position = match.end() + struct.unpack_from(">H", data, match.end())[0]
    raise IndexError("too many segments")


def _sampling_factors(data: bytes, frame: int) -> list[tuple[int, int]]:
    """Of each component, across and down, each >= 1; empty where they are cut off or corrupt."""
    count = data[frame + 7 : frame + 8]
    components = data[frame + 8 : frame + 8 + 3 * count[0]] if count else b""
    factors = [(each >> 4, each & 15) for each in components[1::3]]
    whole = len(components) == 3 * len(factors) and all(x and y for x, y in factors)
    return factors if whole else []


def jpeg_orientation(data: bytes) -> int | None:
    """Reads how an image has to be turned.

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
