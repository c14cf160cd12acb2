"""What a JPEG file declares about itself, and what of it is refused before it is decoded.

The file is walked by libjpeg-turbo's own rules (jdmarker.c, `read_markers` and
`jpeg_resync_to_restart`), up to the end of the first image: a walk that skipped what the decoder
reads would count one scan where the decoder runs a thousand.
"""

import re
import struct
from collections.abc import Iterator, Mapping
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
Buffer = bytes | memoryview
_MAX_SCANS, _MAX_SEGMENTS = 100, 10_000
# Each scan is a pass over all pixels: 20 times the default of max_image_pixels.
MAX_SCANNED_PIXELS = 10**9
# A Huffman decoder stops where the bits end. An arithmetic one goes on with whatever it has learned
# to expect, 21 ns a sample: 12 KB at 50 megapixels and 20 scans took 3.5 s, 103 KB took 12 s.
MAX_ARITHMETIC_SAMPLES = 10**8
_LEAST_SPECTRUM = 8  # of 64 coefficients
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
        arithmetic_samples: samples that an arithmetic decoder goes over, in all scans; a scan of a
            part of the spectrum counts for its part, and for an eighth at least. 0 where the file
            has Huffman codes.
        segments: that stand in the file.
        orientation: how the image has to be turned: 1..8, the EXIF value; 1 where the file has
            none. None where the block is odd in any way.
    """

    width: int
    height: int
    scans: int
    samples: int
    coefficient_bytes: int
    arithmetic_samples: int
    segments: int
    orientation: int | None


def read_jpeg(data: Buffer, max_segments: int = _MAX_SEGMENTS) -> JpegHeader:
    """Reads the markers of a JPEG file, without its pixels.

    Args:
        data: the file, or a stream inside of a TIFF file.
        max_segments: more of them are no image.

    Raises:
        UnsupportedImage: it is lossless or hierarchical, or has samples of other than 8 bits.
        UndecodableImage: it has a marker that no encoder writes.
        IndexError, struct.error: the header is cut off or corrupt.
    """
    frame, scans, segments = None, [], 0
    exif: list[bytes] = []
    for marker, position in jpeg_segments(data, max_segments):
        segments += 1
        if marker == START_OF_SCAN:
            scans.append(position)
        elif marker in _OTHER_FRAMES:
            raise UnsupportedImage(
                f"the JPEG image is {_OTHER_FRAMES[marker]} (SOF{marker - 0xC0}); served are "
                "baseline, extended and progressive JPEG, Huffman or arithmetic coded"
            )
        elif marker in _SERVED_FRAMES and frame is None and not scans:
            frame = marker, position
        elif marker == _APP1 and not scans and len(exif) < 2:
            (length,) = struct.unpack_from(">H", data, position)
            if data[position + 2 : position + 6] == _EXIF[:4]:
                exif.append(bytes(data[position + 2 : position + length]))
    orientation = _orientation_of(exif)
    if frame is None:
        raise IndexError("no frame header before the pixels")
    marker, position = frame
    bits, height, width = struct.unpack_from(">BHH", data, position + 2)
    if bits != 8:
        raise UnsupportedImage(f"the JPEG image has {bits}-bit samples, served are 8 bit")
    names, factors = _components(data, position)
    if not factors:  # its size is known all the same, and may be over a limit
        return JpegHeader(width, height, len(scans), 0, 0, 0, segments, orientation)
    across, down = max(x for x, _ in factors), max(y for _, y in factors)
    samples = [-(-width * height * x * y // (across * down)) for x, y in factors]
    blocks = -(-width // (8 * across)) * -(-height // (8 * down))
    progressive = marker in _PROGRESSIVE
    several = progressive or any(data[at + 2] != len(factors) for at in scans[:1])
    arithmetic_samples = 0
    if marker in _ARITHMETIC:
        by_name = dict(zip(names, samples, strict=True))
        if len(by_name) < len(samples):  # which of them a scan means is the decoder's to guess
            by_name = dict.fromkeys(names, sum(samples))
        arithmetic_samples = sum(
            _scanned_samples(data, at, by_name, progressive=progressive) for at in scans
        )
    return JpegHeader(
        width,
        height,
        scans=len(scans),
        samples=sum(samples),
        coefficient_bytes=2 * 64 * blocks * sum(x * y for x, y in factors) if several else 0,
        arithmetic_samples=arithmetic_samples,
        segments=segments,
        orientation=orientation,
    )


def _scanned_samples(
    data: Buffer, scan: int, samples: Mapping[int, int], *, progressive: bool
) -> int:
    """What one scan adds to `JpegHeader.arithmetic_samples`."""
    count = data[scan + 2]
    names = data[scan + 3 : scan + 3 + 2 * count : 2]
    coefficients = 64
    if progressive:
        first, last = data[scan + 3 + 2 * count], data[scan + 4 + 2 * count]
        coefficients = min(64, max(_LEAST_SPECTRUM, last - first + 1))
    # A component that is not in the frame ends the decoding.
    return sum(samples.get(name, 0) for name in names) * coefficients // 64


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
    if header.arithmetic_samples > MAX_ARITHMETIC_SAMPLES:
        raise UndecodableImage(
            f"the arithmetic scans of the JPEG image go over {header.arithmetic_samples} samples, "
            f"the limit is {MAX_ARITHMETIC_SAMPLES}"
        )
    # A Huffman code takes a bit or more for each block of 8 x 8 samples; in an arithmetic code the
    # poorest photograph takes a quarter for each time that a scan goes over it. What is missing
    # would be grey, and cost as much as an image, however little of the spectrum is scanned.
    needed_bits = header.samples // 64
    if header.arithmetic_samples:
        needed_bits = max(header.samples, header.arithmetic_samples) // 64 // 8
    if needed_bits > 8 * data_bytes:
        raise UndecodableImage(f"the JPEG image is cut off: {data_bytes} bytes for {pixels} pixels")


def jpeg_segments(data: Buffer, max_segments: int = _MAX_SEGMENTS) -> Iterator[tuple[int, int]]:
    """Yields each marker and where its segment starts, up to the end of the first image.

    Raises:
        UndecodableImage: a marker is one that no encoder writes.
        IndexError: there are more than `max_segments`.
    """
    position = 2
    for _ in range(max_segments):
        match = _SEGMENT_MARKER.search(data, position)
        if match is None or match[1][0] == _END_OF_IMAGE or match.end() + 2 > len(data):
            return
        marker = match[1][0]
        if marker in _NEVER_WRITTEN:
            raise UndecodableImage(f"the JPEG image has a marker 0xFF{marker:02X}: it is corrupt")
        yield marker, match.end()
        position = match.end() + struct.unpack_from(">H", data, match.end())[0]
    raise IndexError("too many segments")


def _components(data: Buffer, frame: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Of each component, its name and how often it is sampled across and down, each >= 1.

    Without any where they are cut off or corrupt.
    """
    count = data[frame + 7] if frame + 7 < len(data) else 0
    parts = bytes(data[frame + 8 : frame + 8 + 3 * count])
    factors = [(each >> 4, each & 15) for each in parts[1::3]]
    whole = len(parts) == 3 * count and all(x and y for x, y in factors)
    return (parts[::3], factors) if whole else (b"", [])


def _orientation_of(blocks: list[bytes]) -> int | None:
    """Of the first two EXIF blocks; None where two readers might see different values in them."""
    if not blocks:
        return 1
    if len(blocks) > 1 or not blocks[0].startswith(_EXIF):
        return None
    try:
        return _orientation(blocks[0][len(_EXIF) :])
    except (struct.error, IndexError):
        return None


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
