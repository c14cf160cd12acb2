"""multipart/form-data, part by part, while it streams in."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import MalformedRequest

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
MAX_PREAMBLE_BYTES = 1024  # a text for people, which RFC 2046 allows before the first boundary


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form: a file where it has a file name or an image's content type."""

    name: str
    filename: str | None
    is_file: bool
    data: bytearray

    def text(self) -> str:
        """The value of a field.

        Raises:
            MalformedRequest: it is not UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise MalformedRequest(f"field {self.name!r} is not UTF-8 text") from None


# Not Starlette's MultiPartParser: it writes files of over 1 MB to disk, which no limit of ours
# counts, and takes a body that is cut off as if it were whole, without the part that was cut.
class MultipartReader:
    """Collects parts from a body that comes in pieces.

    Args:
        content_type: the header with the boundary.
        on_file: called with the number of files so far as soon as one begins; may raise.

    Raises:
        MalformedRequest: from every method, when the body is not valid multipart.
    """

    def __init__(self, content_type: str, *, on_file: Callable[[int], None]) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedRequest("the multipart Content-Type has no boundary")
        self._first = b"--" + boundary
        self._preamble: bytes | None = b""  # None once the first boundary has come
        self._collector = collector = _Collector(on_file)
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": collector.part_begins,
                    "on_header_field": collector.header_name_comes,
                    "on_header_value": collector.header_value_comes,
                    "on_header_end": collector.header_ends,
                    "on_headers_finished": collector.headers_end,
                    "on_part_data": collector.data_comes,
                    "on_part_end": collector.part_ends,
                    "on_end": collector.body_ends,
                },
            )
        except FormParserError as error:
            raise MalformedRequest(f"the multipart boundary is not valid: {error}") from None

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece of the body."""
        if self._preamble is not None:
            chunk = self._behind_preamble(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"the multipart body is not valid: {error}") from None

    def _behind_preamble(self, chunk: bytes) -> bytes:
        """What comes from the first boundary on; nothing before it has come."""
        seen = self._preamble + chunk if self._preamble else chunk
        start = 0
        if not seen.startswith(self._first):  # else it begins a line
            start = 1 + seen.find(b"\n" + self._first, 0, MAX_PREAMBLE_BYTES + len(self._first))
            if start == 0:
                if len(seen) >= MAX_PREAMBLE_BYTES + len(self._first):
                    raise MalformedRequest(
                        f"the multipart body has over {MAX_PREAMBLE_BYTES} bytes before its first "
                        "boundary"
                    )
                self._preamble = seen
                return b""
        self._preamble = None
        return seen[start:]

    def finish(self) -> list[Part]:
        """All parts in order, once the body is complete."""
        if self._preamble is not None:
            raise MalformedRequest(
                "the multipart body has no boundary as its Content-Type names it"
            )
        if not self._collector.complete:
            raise MalformedRequest("the multipart body ends before its last boundary")
        return self._collector.parts


class _Collector:
    """Makes parts of what the parser meets.

    Apart from the reader because the parser holds it: were they one object, it would hold itself,
    and the images would stay in memory until a garbage collection.
    """

    def __init__(self, on_file: Callable[[int], None]) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._on_file = on_file
        self._begun = 0
        self._files = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._filename: str | None = None
        self._is_file = False
        self._data = bytearray()

    def part_begins(self) -> None:
        self._begun += 1
        self._headers = {}
        self._data = bytearray()

    def header_name_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_ends(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def headers_end(self) -> None:
        header = self._headers.get(b"content-disposition", b"")
        disposition, options = parse_options_header(header)
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedRequest("a part has no Content-Disposition: form-data with a name")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise MalformedRequest(f"Content-Transfer-Encoding {_text(encoding)!r} is not served")
        self._name = _text(options[b"name"])
        filename = options.get(b"filename")
        self._filename = _extended_filename(header) if filename is None else _text(filename)
        content_type = self._headers.get(b"content-type", b"").lower()
        self._is_file = self._filename is not None or content_type.startswith(b"image/")
        if self._is_file:
            self._files += 1
            self._on_file(self._files)
        if self._begun - self._files > MAX_FIELDS:  # those without a chosen file count, too
            raise MalformedRequest(f"the form has more than {MAX_FIELDS} fields")

    def data_comes(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > MAX_FIELD_BYTES:
            raise MalformedRequest(f"field {self._name!r} has over {MAX_FIELD_BYTES} bytes")

    def part_ends(self) -> None:
        if self._is_file and not self._filename and not self._data:
            # What a browser sends for a file input in which no file was chosen.
            self._files -= 1
            return
        self.parts.append(Part(self._name, self._filename, self._is_file, self._data))

    def body_ends(self) -> None:
        self.complete = True


def _extended_filename(header: bytes) -> str | None:
    """What stands under `filename*`, as in RFC 5987: UTF-8''a%20b.jpg; None where nothing does.

    RFC 7578 does not want it in a form, so the parser leaves it out; some programs send it alone.
    """
    # The parser leaves out every name with a *. Where a value has one, it is decoded again below.
    options = parse_options_header(header.replace(b"*", b"%2A"))[1]
    value = options.get(b"filename%2a")
    if value is None:
        return None
    charset, _, encoded = value.rpartition(b"'")
    latin = charset.lower().startswith(b"iso-8859-1'")
    return unquote_to_bytes(encoded).decode("latin-1" if latin else "utf-8", errors="replace")


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
