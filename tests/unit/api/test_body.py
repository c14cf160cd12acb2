import base64
import codecs
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.body import (
    JSON_COPIES,
    PIECE_BYTES,
    WIDE_JSON_COPIES,
    Form,
    Limits,
    Upload,
    json_copies,
    parse_json,
    read_form,
)
from server.api.multipart import MAX_FIELD_BYTES, MAX_FIELDS, MAX_PREAMBLE_BYTES, MultipartReader
from server.errors import (
    MalformedRequest,
    NoImage,
    ServerError,
    TooLarge,
    UploadsFull,
)
from server.serving.body_budget import BodyReservation, ByteBudget

pytestmark = pytest.mark.anyio
LIMITS = Limits(max_body_bytes=200_000, max_images=3)
HEAD = "multipart/form-data; boundary=cut"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Stream:
    """A body that remembers how much of it was taken."""

    def __init__(self, body: bytes, chunk_bytes: int = 1000) -> None:
        self._chunks = [body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            self.taken += len(chunk)
            yield chunk


async def read(
    body: bytes | Stream,
    limits: Limits = LIMITS,
    reservation: BodyReservation | None = None,
    **headers: str,
) -> Form:
    stream = body if isinstance(body, Stream) else Stream(body)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    reservation = reservation or ByteBudget(10_000_000).reserve()
    with ThreadPoolExecutor(1) as pool:
        return await read_form(httpx.Headers(sent), aiter(stream), limits, reservation, pool)


def multipart(*parts: str | bytes) -> bytes:
    lines = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(b"--cut\r\n" + line + b"\r\n" for line in lines) + b"--cut--\r\n"


def file_part(content: bytes, filename: str = "a.jpg", name: str = "image") -> bytes:
    disposition = f'form-data; name="{name}"; filename="{filename}"'
    return f"Content-Disposition: {disposition}\r\n\r\n".encode() + content


def field_part(name: str, value: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'


@pytest.mark.parametrize("chunk_bytes", [1, 7, 10_000])
async def test_multipart_files_of_any_field_name_come_in_order(chunk_bytes: int) -> None:
    body = multipart(
        file_part(b"first\r\n--cu", "ü.jpg"),
        field_part("conf", "0.5"),
        file_part(b"", "empty.png", name="x"),
        field_part("classes", "0"),
        field_part("classes", "1"),
    )
    form = await read(Stream(body, chunk_bytes), content_type=HEAD)
    assert form.images == [Upload("ü.jpg", b"first\r\n--cu"), Upload("empty.png", b"")]
    assert form.fields == [("conf", "0.5"), ("classes", "0"), ("classes", "1")]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.integers(1, 64))
def test_multipart_from_another_implementation_survives(
    contents: list[bytes], chunk_bytes: int
) -> None:
    files = [("image", (f"{i}.jpg", content)) for i, content in enumerate(contents)]
    request = httpx.Request("POST", "http://test", files=files, data={"conf": "0.5"})
    body = request.read()
    reader = MultipartReader(request.headers["content-type"], on_file=lambda _: None)
    for start in range(0, len(body), chunk_bytes):
        reader.feed(body[start : start + chunk_bytes])
    parts = reader.finish()
    assert [part.data for part in parts if part.is_file] == contents
    assert [(part.name, part.text()) for part in parts if not part.is_file] == [("conf", "0.5")]


async def test_a_part_with_an_images_type_is_an_image_without_a_file_name() -> None:
    part = 'Content-Disposition: form-data; name="a"\r\nContent-Type: image/png\r\n\r\nx'
    assert (await read(multipart(part), content_type=HEAD)).images == [Upload(None, b"x")]


async def test_an_input_without_a_chosen_file_is_no_image() -> None:
    with pytest.raises(NoImage):
        await read(multipart(file_part(b"", filename="")), content_type=HEAD)


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "Image/X; a=b"])
async def test_a_raw_body_is_one_image(content_type: str) -> None:
    assert (await read(b"abc", content_type=content_type)).images == [Upload(None, b"abc")]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_json_carries_base64_and_parameters(prefix: str) -> None:
    texts = [prefix + base64.b64encode(each).decode() for each in (b"one", b"two")]
    body = json.dumps({"images": texts, "conf": 0.5, "classes": [1, "WBC"]}).encode()
    form = await read(body, content_type="application/json; charset=utf-8")
    assert form.images == [Upload(None, b"one"), Upload(None, b"two")]
    assert form.fields == [("conf", 0.5), ("classes", [1, "WBC"])]


@pytest.mark.parametrize(
    ("option", "filename"),
    [
        ("filename*=UTF-8''a%20%E2%82%AC%2A.jpg", "a €*.jpg"),
        ("filename* = utf-8'en'b.jpg", "b.jpg"),
        ("FILENAME*=iso-8859-1'de'%FC.jpg", "ü.jpg"),
        ("filename*=UTF-8''%FC.jpg", "\ufffd.jpg"),
        ("filename*=c.jpg", "c.jpg"),
        ("filename*=UTF-8''not.jpg; filename=d.jpg", "d.jpg"),
        ('filename="*;filename*=not.jpg"', "*;filename*=not.jpg"),
    ],
)
async def test_a_part_with_an_extended_file_name_is_a_file(option: str, filename: str) -> None:
    part = f"Content-Disposition: form-data; name=a; {option}\r\n\r\nx"
    assert (await read(multipart(part), content_type=HEAD)).images == [Upload(filename, b"x")]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 10_000])
@pytest.mark.parametrize(
    "preamble",
    [
        b"This is a multi-part message in MIME format.\r\n",
        b"\r\n",
        b"two lines,\r\n--cu of them --cut\r\n",
        b"x" * (MAX_PREAMBLE_BYTES - 2) + b"\r\n",
    ],
)
async def test_a_text_before_the_first_boundary_is_skipped(
    preamble: bytes, chunk_bytes: int
) -> None:
    body = preamble + multipart(file_part(b"first"), file_part(b"second", "b.jpg"))
    form = await read(Stream(body, chunk_bytes), content_type=HEAD)
    assert form.images == [Upload("a.jpg", b"first"), Upload("b.jpg", b"second")]


@pytest.mark.parametrize("chunk_bytes", [1, 10_000])
async def test_a_text_without_end_before_the_first_boundary_is_refused(chunk_bytes: int) -> None:
    stream = Stream(b"x" * 100_000 + multipart(file_part(b"x")), chunk_bytes)
    with pytest.raises(MalformedRequest, match="over 1024 bytes before its first boundary"):
        await read(stream, content_type=HEAD)
    assert stream.taken <= MAX_PREAMBLE_BYTES + len(b"--cut") + chunk_bytes


MALFORMED_MULTIPART = {
    "no boundary": ("multipart/form-data", multipart(file_part(b"x"))),
    "long boundary": (f"multipart/form-data; boundary={'b' * 500}", b"x"),
    "one byte too much before it": (
        HEAD,
        b"x" * (MAX_PREAMBLE_BYTES - 1) + b"\r\n" + multipart(file_part(b"x")),
    ),
    "not multipart": (HEAD, b"hello"),
    "other boundary": ("multipart/form-data; boundary=other", multipart(file_part(b"x"))),
    "cut in a part": (HEAD, multipart(file_part(b"x" * 99))[:-30]),
    "no last boundary": (HEAD, multipart(file_part(b"x")).removesuffix(b"--cut--\r\n")),
    "no name": (HEAD, multipart("Content-Disposition: form-data\r\n\r\nx")),
    "no disposition": (HEAD, multipart("Content-Type: image/png\r\n\r\nx")),
    "field is not text": (HEAD, multipart(field_part("conf", "").encode() + b"\xff")),
    "base64 part": (
        HEAD,
        multipart(b"Content-Transfer-Encoding: base64\r\n" + file_part(b"eA==")),
    ),
    "too many fields": (HEAD, multipart(*[field_part("conf", "1")] * (MAX_FIELDS + 1))),
    "too many unchosen files": (HEAD, multipart(*[file_part(b"", "")] * 2 * MAX_FIELDS)),
    "long field": (HEAD, multipart(field_part("conf", "1" * (MAX_FIELD_BYTES + 1)))),
    "long header": (HEAD, multipart(b"X: " + b"x" * 100_000 + b"\r\n" + file_part(b"x"))),
}


@pytest.mark.parametrize("case", MALFORMED_MULTIPART)
async def test_malformed_multipart_is_refused(case: str) -> None:
    content_type, body = MALFORMED_MULTIPART[case]
    with pytest.raises(MalformedRequest):
        await read(body, content_type=content_type)


async def test_a_byte_order_mark_before_json_is_skipped_and_costs_no_more_memory() -> None:
    budget = ByteBudget(10_000)
    body = b'\xef\xbb\xbf{"images": ["eA=="]}'
    form = await read(body, reservation=budget.reserve(), content_type="application/json")
    assert form.images == [Upload(None, b"x")]
    assert budget.taken == 3 * len(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf",
        b'\xef\xbb\xbf\xef\xbb\xbf{"images": ["eA=="]}',
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'"images"',
        b'{"images": "eA=="}',
        b'{"images": {}}',
        b'{"images": [1]}',
        b'{"images": ["eA="]}',
        b'{"images": ["e A="]}',
        '{"images": ["ü"]}'.encode(),
        b'{"images": [null]}',
        b'{"conf": ' + b"9" * 10_000 + b"}",
        b'{"images": ["eA=="], "classes": [' + b"0," * 10_000 + b"0]}",
        b'{"images": ["eA=="], "classes": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"images": ["eA=="], "conf": NaN}',
        b'{"images": ["eA=="], "conf": 1e999}',
        b'{"images": ["eA=="], "format": "\\ud800"}',
    ],
    ids=lambda body: body[:20].decode(errors="replace"),
)
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_json(body, LIMITS)


@pytest.mark.parametrize("content_type", ["image/png", "application/json", HEAD])
async def test_a_body_over_the_limit_is_refused_before_the_rest_is_read(content_type: str) -> None:
    stream = Stream(multipart(file_part(b"x" * 1_000_000)))
    with pytest.raises(TooLarge, match="max_body_bytes is 200000") as refused:
        await read(stream, content_type=content_type)
    assert refused.value.code == "body_too_large"
    assert stream.taken <= LIMITS.max_body_bytes + 1000


async def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    stream = Stream(b"x" * 1000)
    with pytest.raises(TooLarge, match="200001"):
        await read(stream, content_type="image/png", content_length="200001")
    assert stream.taken == 0


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = b"x" * LIMITS.max_body_bytes
    form = await read(body, content_type="image/png", content_length=str(len(body)))
    assert form.images[0].data == body


async def test_one_image_too_many_is_refused_before_the_rest_is_read() -> None:
    stream = Stream(multipart(*[file_part(b"x" * 5000)] * 20))
    with pytest.raises(TooLarge, match="max_images_per_request is 3") as refused:
        await read(stream, content_type=HEAD)
    assert refused.value.code == "too_many_images"
    assert stream.taken <= 4 * 6000
    with pytest.raises(TooLarge):
        parse_json(json.dumps({"images": ["eA=="] * 4}).encode(), LIMITS)


@pytest.mark.parametrize("content_type", ["image/png", "application/json", HEAD])
async def test_bodies_share_one_budget_and_the_rest_of_one_too_many_is_not_read(
    content_type: str,
) -> None:
    budget = ByteBudget(150_000)
    other = budget.reserve()
    other.take(100_000)
    mine = budget.reserve()
    stream = Stream(multipart(file_part(b"x" * 180_000)))
    with pytest.raises(
        UploadsFull, match=r"hold 100000 bytes .* max_inflight_body_bytes is 150000"
    ):
        await read(stream, reservation=mine, content_type=content_type)
    assert stream.taken <= 51_000
    assert budget.taken <= budget.max_bytes
    mine.release()
    assert budget.taken == 100_000


async def test_an_announced_body_that_does_not_fit_now_is_refused_unread_and_takes_nothing() -> (
    None
):
    budget = ByteBudget(1000)
    other = budget.reserve()
    other.take(1)
    stream = Stream(b"x" * 1000)
    with pytest.raises(UploadsFull):
        await read(
            stream, reservation=budget.reserve(), content_type="image/png", content_length="1000"
        )
    assert (stream.taken, budget.taken) == (0, 1)


async def test_a_body_that_never_fits_is_too_large() -> None:
    with pytest.raises(TooLarge, match="max_inflight_body_bytes is 999") as refused:
        await read(b"x" * 1000, reservation=ByteBudget(999).reserve(), content_type="image/png")
    assert refused.value.code == "body_too_large"


@pytest.mark.parametrize(
    ("text", "times"), [("A" * 99, 3), ("A" * 99 + "\\ud83d\\ude00", 6), ("A" * 99 + "😀", 6)]
)
async def test_json_counts_for_what_it_takes_once_parsed(text: str, times: int) -> None:
    budget = ByteBudget(10_000)
    body = f'{{"images": ["eA=="], "conf": "{text}"}}'.encode()
    await read(body, reservation=budget.reserve(), content_type="application/json")
    assert budget.taken == times * len(body)


@given(st.binary(max_size=400))
def test_no_body_makes_json_or_multipart_fail_in_another_way(body: bytes) -> None:
    reader_errors: list[Exception] = []
    for parse in (lambda: parse_json(body, LIMITS), lambda: _multipart(b"--cut\r\n" + body)):
        try:
            parse()
        except ServerError as error:
            reader_errors.append(error)
    assert all(isinstance(e, MalformedRequest | TooLarge) for e in reader_errors)


def _multipart(body: bytes) -> None:
    reader = MultipartReader(HEAD, on_file=LIMITS.check_images)
    reader.feed(body)
    reader.finish()


class CountingPool(ThreadPoolExecutor):
    """Remembers what it ran, and on which thread the memory for it was taken."""

    def __init__(self) -> None:
        super().__init__(1)
        self.ran: list[str] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.ran.append(work.__name__)
        return super().submit(work, *args, **kwargs)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", json.dumps({"images": ["aGVsbG8="]}).encode(), "parse_json"),
        ("image/jpeg", b"hello", "_raw"),
        (HEAD, multipart(file_part(b"hello")), "_form_of"),
    ],
    ids=["json", "raw", "multipart"],
)
async def test_whatever_walks_or_copies_a_whole_body_is_not_on_the_event_loop(
    content_type: str, body: bytes, expected: str
) -> None:
    with CountingPool() as pool:
        headers = httpx.Headers({"content-type": content_type})
        reservation = ByteBudget(10_000).reserve()
        form = await read_form(headers, aiter(Stream(body)), LIMITS, reservation, pool)
    assert [image.data for image in form.images] == [b"hello"]
    assert pool.ran == ["json_copies"] * (expected == "parse_json") + [expected]


@pytest.mark.parametrize(
    "before", [0, PIECE_BYTES - 2, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES]
)
@pytest.mark.parametrize("wide", ["\\u20ac", "\u20ac"], ids=["escaped", "as it is"])
def test_characters_that_take_more_memory_are_found_wherever_they_are(
    before: int, wide: str
) -> None:
    plain = b'"' + b"x" * (before - 1) if before else b""
    assert json_copies(plain + b"yz") == JSON_COPIES
    assert json_copies(bytearray(plain + wide.encode() + b"yz")) == WIDE_JSON_COPIES
    assert json_copies(codecs.BOM_UTF8 + plain + b"yz") == JSON_COPIES
