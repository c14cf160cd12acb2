"""multipart/form-data, part by part, while it streams in."""

from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import MalformedRequest

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form: a file where it has a file name or an image's content type."""

    name: str
    filename: str | None
    is_file: bool
    data: bytes

    def text(self) -> str:
        """The value of a field.

        Raises:
            MalformedRequest: it is not UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise MalformedRequest(f"field {self.name!r} is not UTF-8 text") from None


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
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"the multipart body is not valid: {error}") from None

    def finish(self) -> list[Part]:
        """All parts in order, once the body is complete."""
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
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedRequest("a part has no Content-Disposition: form-data with a name")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise MalformedRequest(f"Content-Transfer-Encoding {_text(encoding)!r} is not served")
        self._name = _text(options[b"name"])
        filename = options.get(b"filename")
        self._filename = None if filename is None else _text(filename)
        content_type = self._headers.get(b"content-type", b"").lower()
        self._is_file = filename is not None or content_type.startswith(b"image/")
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
        data = bytes(self._data)
        self._data = bytearray()  # not kept beside its copy until the next part begins
        self.parts.append(Part(self._name, self._filename, self._is_file, data))

    def body_ends(self) -> None:
        self.complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
