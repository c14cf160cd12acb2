"""Base64 as programs write it: wrapped in lines, in the URL-safe alphabet, without its padding."""

import binascii
import io

from server.api.parameters import truncate_repr
from server.errors import MalformedRequest

PIECE_CHARACTERS = 64 * 1024
_PLAIN = {ord("\r"): None, ord("\n"): None, ord("-"): "+", ord("_"): "/"}


def read_base64(value: object, where: str) -> bytes:
    """The bytes that a value of a JSON document is the base64 of; as `decode_base64`.

    Args:
        value: of any type.
        where: names it in the error.

    Raises:
        MalformedRequest: it is not a text, a URL, or not base64.
    """
    if not isinstance(value, str):
        raise MalformedRequest(f"{where} must be a base64 text, not {truncate_repr(value)}")
    try:
        return decode_base64(value)
    except ValueError:
        if "://" in value[:16]:
            raise MalformedRequest(
                f"{where} is a URL; URLs are not fetched: send the file as base64, or to /detect "
                "as multipart/form-data"
            ) from None
        raise MalformedRequest(f"{where} is not valid base64") from None


def decode_base64(text: str) -> bytes:
    """The bytes that a text is the base64 of.

    CR and LF count for nothing, `-` and `_` for `+` and `/`; the padding may be missing as a whole.
    A text with none of that is not copied, and of another one only a piece at a time.

    Raises:
        ValueError: anything else is in it, or it is cut off.
    """
    try:
        # Not base64.b64decode: it would make a copy of the text.
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        if not text.isascii():  # and translate() would take seconds for it
            raise
    decoded = io.BytesIO()  # which gives what it holds without a copy
    rest = ""
    for start in range(0, len(text), PIECE_CHARACTERS):
        rest += text[start : start + PIECE_CHARACTERS].translate(_PLAIN)
        whole = max(0, len(rest) - 1) // 4 * 4  # not the last four, which alone may be padded
        if "=" in rest[:whole]:
            raise ValueError("padding before the end")
        decoded.write(binascii.a2b_base64(rest[:whole], strict_mode=True))
        rest = rest[whole:]
    if "=" not in rest:
        rest += "=" * (-len(rest) % 4)
    decoded.write(binascii.a2b_base64(rest, strict_mode=True))
    return decoded.getvalue()
