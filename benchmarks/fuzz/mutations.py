"""Files damaged on purpose: bits, bytes, numbers, lengths, cuts and splices."""

import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

from benchmarks.fuzz.seeds import png_chunk

_EDGES = (0, 1, 2, 3, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
          0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
_HEADER_BYTES = 250  # half of the damage is done here
_MAX_BYTES = 100_000  # so that splices of splices stay small
# Where a length or a size stands: after a JPEG marker, before or after the name of a chunk.
_LENGTHS = re.compile(
    rb"(?<=\xff[\xc0-\xcf\xda-\xef\xfe])|(?=IHDR|IDAT|PLTE|acTL|fcTL|fdAT|tRNS|eXIf)"
    rb"|(?<=RIFF|VP8X|VP8 |VP8L|ANMF|ALPH|ANIM|EXIF)",
    re.DOTALL,
)


def damaged(seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """Input `number` of the run `seed`: always the same bytes."""
    chance = random.Random(f"{seed}/{number}")
    data = bytearray(chance.choice(seeds))
    if data.startswith(b"\x89PNG") and chance.random() < 0.3:
        _damage_rows(data, chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        chance.choice(_MUTATIONS)(data, seeds, chance)
        del data[_MAX_BYTES:]
    if data.startswith(b"\x89PNG") and chance.random() < 0.8:
        _mend_checksums(data)
    return bytes(data)


def _somewhere(data: bytearray, chance: random.Random) -> int:
    end = min(len(data), _HEADER_BYTES) if chance.random() < 0.5 else len(data)
    return chance.randrange(max(1, end))


def _flip(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if data:
            data[_somewhere(data, chance)] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _somewhere(data, chance)
    size = chance.choice((1, 1, 2, 4, 30))
    data[at : at + size] = chance.choice((chance.randbytes(size), bytes(size), b"\xff" * size))


def _number(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    _put_number(data, _somewhere(data, chance), chance)


def _length(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    places = [match.start() for match in _LENGTHS.finditer(data)]
    if data.startswith((b"II", b"MM")):  # a TIFF directory: count, tag, kind, length, value
        places += list(range(4, min(len(data), 300), 2))
    if places:
        at = chance.choice(places)
        png = data.startswith(b"\x89PNG")
        _put_number(data, max(0, at - 4) if png else at, chance)


def _put_number(data: bytearray, at: int, chance: random.Random) -> None:
    form = chance.choice((">H", "<H", ">I", "<I"))
    size = struct.calcsize(form)
    old = struct.unpack(form, data[at : at + size].ljust(size, b"\0"))[0]
    new = chance.choice((chance.choice(_EDGES), old + chance.choice((-1, 1)), old * 2, old // 2))
    data[at : at + size] = struct.pack(form, new % 256**size)


def _cut(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    del data[_somewhere(data, chance) :]


def _remove(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _somewhere(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 50, 1000))]


def _repeat(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _somewhere(data, chance)
    piece = data[at : at + chance.choice((1, 4, 20, 300, 3000))]
    data[at:at] = piece * chance.choice((1, 1, 2, 10))


def _insert(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _somewhere(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 64)))


def _splice(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(seeds)
    at = _somewhere(data, chance)
    data[at:] = other[chance.randrange(len(other)) :]


def _paste(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(seeds)
    start, at = chance.randrange(len(other)), _somewhere(data, chance)
    piece = other[start : start + chance.choice((4, 20, 200))]
    data[at : at + len(piece)] = piece


_MUTATIONS: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    _flip, _flip, _overwrite, _number, _number, _length, _length, _cut, _remove, _repeat, _insert,
    _splice, _paste,
)  # fmt: skip


def _damage_rows(data: bytearray, chance: random.Random) -> None:
    """Damages the rows of a PNG below their compression, where a flipped bit would end it."""
    start = data.find(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    try:
        rows = bytearray(zlib.decompress(data[start + 4 : start + 4 + length]))
    except zlib.error:  # several chunks hold them
        return
    if rows:
        chance.choice((_flip, _overwrite, _cut, _repeat))(rows, (), chance)
    data[start - 4 : start + 8 + length] = png_chunk(b"IDAT", zlib.compress(bytes(rows), 1))


def _mend_checksums(data: bytearray) -> None:
    """A wrong checksum would end most PNGs before the damage is met."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
