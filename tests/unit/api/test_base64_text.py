import base64
import binascii

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.api.base64_text import PIECE_CHARACTERS, decode_base64

# Around the ends of the pieces in which a text that is not plain is read.
LENGTHS = [0, 1, 2, 3, 4, 57, *range(3 * PIECE_CHARACTERS // 4 - 5, 3 * PIECE_CHARACTERS // 4 + 5)]


def content_of(length: int) -> bytes:
    return bytes(i * 7 % 256 for i in range(length))


def wrapped(text: str, line_end: str) -> str:
    return line_end.join(text[i : i + 76] for i in range(0, len(text), 76)) + line_end


@pytest.mark.parametrize("length", LENGTHS)
def test_what_programs_write_is_read(length: int) -> None:
    content = content_of(length)
    plain = base64.b64encode(content).decode()
    safe = base64.urlsafe_b64encode(content).decode()
    for text in (plain, safe):
        for unwrapped in (text, text.rstrip("=")):
            assert decode_base64(unwrapped) == content
            for line_end in ("\n", "\r\n"):
                assert decode_base64(wrapped(unwrapped, line_end)) == content
    assert decode_base64(base64.encodebytes(content).decode()) == content


@pytest.mark.parametrize(
    "text",
    [
        "e A==",
        "eA==\t",
        "eA=",
        "e",
        "e===",
        "=",
        "====",
        "eA==eA==",
        "eA==\neA==",
        "eA==\n=",
        "eA\n===",
        "eA%3D%3D",
        "eA.",
        "ü",
        "eA==ü",
        "\x00",
        "eA==\n" * PIECE_CHARACTERS,
        "A" * PIECE_CHARACTERS + "eA==\n" + "A" * PIECE_CHARACTERS,
        "A" * (PIECE_CHARACTERS - 4) + "eA==" + "\nAAAA",
        "A" * (PIECE_CHARACTERS - 3) + "eA==" + "\nAAAA",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its words are not for anybody
        decode_base64(text)


@given(st.text(alphabet="Az09+/-_=\r\n .ü", max_size=40))
def test_a_text_is_read_as_its_plain_form_or_refused(text: str) -> None:
    plain = text.replace("\r", "").replace("\n", "").replace("-", "+").replace("_", "/")
    padded = plain if "=" in plain else plain + "=" * (-len(plain) % 4)
    assume(len(padded) % 4 == 0)  # Python 3.11 also takes too much padding
    try:
        expected: bytes | None = binascii.a2b_base64(padded, strict_mode=True)
    except ValueError:
        expected = None
    try:
        assert decode_base64(text) == expected
    except ValueError:
        assert expected is None
