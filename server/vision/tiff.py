"""What a TIFF file declares in its first directory, and what of it is refused before decoding."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImage, UnsupportedImage
from server.vision.jpeg import (
    MAX_ARITHMETIC_SAMPLES,
    MAX_SCANNED_PIXELS,
    read_jpeg,
    refuse_costly_jpeg,
)

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _BITS = 256, 257, 322, 323, 258
_PHOTOMETRIC, _LOG_LUV = 262, 32845  # decodes to floats, in 24 bytes a pixel
_COMPRESSION, _JPEG = 259, 7
# What OpenCV's libtiff decodes, less the rare ones that are tested nowhere.
_SERVED_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG, 8, 32773, 32946}
_COMPRESSION_NAMES = {6: "old-style JPEG", 34712: "JPEG 2000", 34925: "LZMA", 50000: "Zstandard"}
_COMPRESSION_NAMES |= {34887: "LERC", 34661: "JBIG", 50001: "WebP", 50002: "JPEG XL"}
_STRIPS, _TILES = (273, 279), (324, 325)  # where they begin, and their lengths in bytes
_OFFSETS, _BYTES = zip(_STRIPS, _TILES, strict=True)
_SINGLE = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _PHOTOMETRIC, _COMPRESSION)
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
# Bytes of one value, by kind.
_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1)) | dict.fromkeys(
    (16, 17, 18), 8
)
_WANTED = frozenset({*_SINGLE, _BITS, *_OFFSETS, *_BYTES})
_MAX_BITS = 16  # a file of 218 KB and 64-bit samples took 10 s and 3 GB to decode
# Strips may share bytes, and each is read anew: a file of 9 MB took 28 s to decode.
_MAX_TIMES_READ = 4
_MAX_JPEG_STRIPS, _MAX_JPEG_SEGMENTS = 10_000, 100_000


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """The size of the first image of a TIFF file.

    Attributes:
        width, height: pixels as stored, before orientation; >= 0.
        tile_pixels: pixels of a tile, 0 where there are none.
        stream_pixels: pixels of all JPEG streams; one may be larger than its strip or tile.
        coefficient_bytes: what libjpeg keeps of a strip's or tile's scans until the last has come.
    """

    width: int
    height: int
    tile_pixels: int
    stream_pixels: int
    coefficient_bytes: int


def read_tiff(data: bytes) -> TiffHeader:
    """Reads the first directory, and the headers of JPEG streams in strips or tiles.

    Raises:
        UnsupportedImage: the compression is not served.
        UndecodableImage: samples are floats or have more than 16 bits; strips, tiles or values of
            tags overlap; or a JPEG stream is refused.
        IndexError, struct.error: the header is cut off or corrupt.
    """
    directory = _Directory(data)
    # Each is kept apart, also of tags that mean nothing: 20 that shared 5 MB took 105 MB.
    if directory.value_bytes > len(data):
        raise UndecodableImage("the values of the TIFF image's tags overlap")
    if (bits := directory.number(_BITS)) > _MAX_BITS:
        raise UndecodableImage(f"the TIFF image has {bits}-bit samples, served are 8 and 16 bit")
    if directory.number(_PHOTOMETRIC) == _LOG_LUV:
        raise UndecodableImage("the TIFF image has float samples, served are 8 and 16 bit")
    compression = directory.number(_COMPRESSION) or 1
    if compression not in _SERVED_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, "a compression that is not known")
        raise UnsupportedImage(
            f"the TIFF image is compressed with {name} ({compression}); served are none, LZW, "
            "Deflate, PackBits, CCITT and JPEG"
        )
    if directory.bytes_read() > _MAX_TIMES_READ * len(data):
        raise UndecodableImage("the strips or tiles of the TIFF image overlap")
    tile_pixels = directory.number(_TILE_WIDTH) * directory.number(_TILE_HEIGHT)
    streams = _check_jpeg_strips(directory) if compression == _JPEG else (0, 0)
    return TiffHeader(directory.number(_WIDTH), directory.number(_HEIGHT), tile_pixels, *streams)


class _Directory:
    """The entries of the first directory of a file that are looked at.

    Attributes:
        value_bytes: of all values that are kept outside of their entries, also of unknown tags.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = order = "<" if data.startswith(b"II") else ">"
        big = b"+" in data[:4]
        offset: int = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
        count: int = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, offset)[0]
        if count > 0xFFFF:  # what the smaller form can hold
            raise IndexError("too many entries")
        form, size, inline = (f"{order}HHQ", 20, 8) if big else (f"{order}HHI", 12, 4)
        self._entries: dict[int, tuple[int, int, int]] = {}  # tag -> kind, length, where
        first = offset + (8 if big else 2)
        self.value_bytes = 0
        for position in range(first, first + count * size, size):
            tag, kind, length = struct.unpack_from(form, data, position)
            taken = length * _SIZES.get(kind, 0)
            # What is not all there is not kept.
            if taken > inline and taken <= len(data):
                self.value_bytes += taken
            if tag in _WANTED:
                if tag in self._entries:
                    raise IndexError(f"tag {tag} is there twice")
                at = position + size - inline
                if kind in _NUMBERS and length * struct.calcsize(_NUMBERS[kind]) > inline:
                    at = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at)[0]
                self._entries[tag] = kind, length, at
        # libtiff has one place for both, and the later one wins.
        if any(tag in self._entries for tag in _STRIPS) and any(
            tag in self._entries for tag in _TILES
        ):
            raise IndexError("strips and tiles")

    def number(self, tag: int) -> int:
        """The first value of a tag; 0 where the tag is missing."""
        if tag not in self._entries:
            return 0
        kind, length, at = self._entries[tag]
        # libtiff also takes signed kinds: a size must not be read in two ways.
        if kind not in _NUMBERS or (tag in _SINGLE and length != 1):
            raise IndexError(f"tag {tag} has no number")
        value: int = struct.unpack_from(self._order + _NUMBERS[kind], self._data, at)[0]
        return value

    def numbers(self, tag: int) -> NDArray[np.unsignedinteger]:
        """The values of a tag that are in the file; empty where it is missing or has none."""
        kind, length, at = self._entries.get(tag, (0, 0, 0))
        form = np.dtype(self._order + _NUMBERS.get(kind, "B"))
        available = max(0, len(self._data) - at) // form.itemsize
        count = min(length if kind in _NUMBERS else 0, available)
        return np.frombuffer(self._data, form, count, min(at, len(self._data)))

    def bytes_read(self) -> int:
        """Bytes of all strips and tiles together; of unknown length, each may be the whole file."""
        total = 0
        for offsets, sizes in zip(_OFFSETS, _BYTES, strict=True):
            strips = self._entries[offsets][1] if offsets in self._entries else 0
            if sizes in self._entries and self._entries[sizes][0] in _NUMBERS:
                values = self.numbers(sizes)
                # A file may be longer than their type counts.
                most = min(len(self._data), int(np.iinfo(values.dtype).max))
                total += int(np.minimum(values, most).sum(dtype=np.uint64))
                strips = 0
            total += strips * len(self._data)
        return total

    def strips(self) -> Iterator[memoryview]:
        """What each strip or tile holds.

        Raises:
            IndexError: their places or lengths are missing, or they are very many.
        """
        for offsets, sizes in zip(_OFFSETS, _BYTES, strict=True):
            places, lengths = self.numbers(offsets), self.numbers(sizes)
            if len(places):
                if len(places) != len(lengths) or len(places) > _MAX_JPEG_STRIPS:
                    raise IndexError("no length for each strip, or too many strips")
                view = memoryview(self._data)  # not copies: they may share bytes
                for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
                    yield view[place : place + length]
                return
        raise IndexError("no strips and no tiles")


def _check_jpeg_strips(directory: _Directory) -> tuple[int, int]:
    """Refuses JPEG streams as a file of each is refused.

    Returns:
        `TiffHeader.stream_pixels` and `coefficient_bytes`.
    """
    pixels = scanned_pixels = arithmetic_samples = kept = 0
    segments = _MAX_JPEG_SEGMENTS
    for strip in directory.strips():
        if bytes(strip[:2]) != b"\xff\xd8":
            raise IndexError("a strip is no JPEG stream")
        header = read_jpeg(strip, segments)
        refuse_costly_jpeg(header, len(strip))
        segments -= header.segments
        pixels += header.width * header.height
        scanned_pixels += header.scans * header.width * header.height
        arithmetic_samples += header.arithmetic_samples
        kept = max(kept, header.coefficient_bytes)
    for count, limit in (
        (scanned_pixels, MAX_SCANNED_PIXELS),
        (arithmetic_samples, MAX_ARITHMETIC_SAMPLES),
    ):
        if count > limit:
            raise UndecodableImage(
                f"the scans of the TIFF image's JPEG streams go over {count} pixels, the limit is "
                f"{limit}"
            )
    return pixels, kept
