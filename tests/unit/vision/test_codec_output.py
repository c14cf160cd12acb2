import ctypes
import threading
from contextlib import suppress

import numpy as np
import pytest

from benchmarks.fuzz.seeds import png_chunk
from server.errors import UndecodableImage
from server.vision.codec_output import codecs_muted
from server.vision.decode import decode
from tests.support.serving import encode

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
PNG, JPEG = encode(PIXELS), encode(PIXELS, ".jpg")
PNG_HEAD_BYTES = 33


NOISY = {
    "a broken transparency": (
        PNG[:PNG_HEAD_BYTES] + png_chunk(b"tRNS", b"x") + PNG[PNG_HEAD_BYTES:]
    ),
    "pixels that fail their sum": PNG[:-20] + bytes([PNG[-20] ^ 255]) + PNG[-19:],
    "pixels that are missing": JPEG[:700] + bytes(20) + JPEG[-2:],
    "bytes between pixels": JPEG[:-2] + b"\xab\xcd" * 9 + JPEG[-2:],
    "an unknown version of JFIF": JPEG.replace(b"JFIF\0\1", b"JFIF\0\x09"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_a_codec_writes_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with suppress(UndecodableImage):
        decode(NOISY[name], max_pixels=10**6)
    assert capfd.readouterr().err == ""


def test_c_code_is_heard_again_when_the_last_thread_has_decoded(
    capfd: pytest.CaptureFixture[str],
) -> None:
    library = ctypes.CDLL(None)
    first, last = threading.Event(), threading.Event()

    def decodes() -> None:
        with codecs_muted():
            first.set()
            last.wait()

    other = threading.Thread(target=decodes)
    other.start()
    first.wait()
    with codecs_muted():
        library.perror(b"inside")
    library.perror(b"another is inside")
    last.set()
    other.join()
    library.perror(b"outside")
    assert capfd.readouterr().err.startswith("outside: ")
