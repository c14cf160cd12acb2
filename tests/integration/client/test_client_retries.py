"""The client against servers that refuse, reset, hang and tell it to come again."""

import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from yolov8_fla_client import AsyncClient, Client, Retry, ServerFailed, Unavailable, Unreachable
from yolov8_fla_client.results import ImageResult

from tests.support.flaky import Decide, Flaky, Reply, digest, flaky

# Short waits: nothing here depends on how long they are.
OFTEN = Retry(first_wait_s=0.001, longest_wait_s=0.01, deadline_s=60)
IMAGES = 120

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images that differ, in folders where names are repeated."""
    for i in range(IMAGES):
        place = tmp_path / f"part{i % 3}"
        place.mkdir(exist_ok=True)
        (place / f"{i // 3}.jpg").write_bytes(b"image %d" % (i + 1))
    return tmp_path


def collect(stream: Iterable[ImageResult], found: list[ImageResult]) -> None:
    for each in stream:
        found.append(each)  # noqa: PERF402  # those before an error stay


def half_refused(status: int = 503, **headers: str) -> Decide:
    chance = random.Random(6)
    return lambda request, images: Reply(status, headers) if chance.random() < 0.5 else None


def all_done_and_none_twice(results: list[ImageResult], folder: Path, server: Flaky) -> None:
    files = {str(each.relative_to(folder)): each for each in folder.rglob("*.jpg")}
    assert Counter(each.filename for each in results) == Counter(list(files))
    assert all(each.ok for each in results)
    for each in results:  # each name has its own image's result
        assert files[each.filename or ""].read_bytes() == b"image %d" % (each.width or 0)
    assert server.taken == Counter(digest(each.read_bytes()) for each in files.values())
    assert server.requests > len(server.sizes), "nothing was refused"


@pytest.mark.parametrize("images_per_request", [1, 4])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_refuses_half_gets_every_image_once(
    folder: Path, status: int, images_per_request: int
) -> None:
    with flaky(half_refused(status)) as server, Client(server.url, retry=OFTEN) as client:
        found = list(client.detect_folder(folder, images_per_request=images_per_request))
        all_done_and_none_twice(found, folder, server)
    assert max(server.sizes) == images_per_request
    assert server.most_at_once <= 4


async def test_the_asynchronous_client_does_so_too(folder: Path) -> None:
    with flaky(half_refused()) as server:
        async with AsyncClient(server.url, retry=OFTEN) as client:
            found = [each async for each in client.detect_folder(folder)]
        all_done_and_none_twice(found, folder, server)
    assert server.most_at_once <= 4


def test_connections_that_are_reset_before_an_answer_are_made_again(folder: Path) -> None:
    chance = random.Random(1)
    with (
        flaky(lambda *_: Reply() if chance.random() < 0.5 else None) as server,
        Client(server.url, retry=OFTEN) as client,
    ):
        all_done_and_none_twice(list(client.detect_folder(folder)), folder, server)


def test_half_an_answer_is_none() -> None:
    with (
        flaky(lambda request, _: Reply(half_an_answer=True) if request == 0 else None) as server,
        Client(server.url, retry=OFTEN) as client,
    ):
        assert client.detect(b"image 3")[0].width == 3
    assert server.requests == 2


def all_at_once(requests: int) -> Decide:
    """Refuses the first requests, but only when all of them are there."""
    all_there = threading.Event()

    def decide(request: int, images: list[bytes]) -> Reply | None:
        if request == requests - 1:
            all_there.set()
        return Reply(503, hang_until=all_there) if request < requests else None

    return decide


def test_several_requests_are_on_their_way_at_once(folder: Path) -> None:
    with flaky(all_at_once(3)) as server, Client(server.url, retry=OFTEN) as client:
        all_done_and_none_twice(list(client.detect_folder(folder, in_flight=3)), folder, server)
    assert server.most_at_once == 3


async def test_so_they_are_with_the_asynchronous_client(folder: Path) -> None:
    with flaky(all_at_once(3)) as server:
        async with AsyncClient(server.url, retry=OFTEN) as client:
            found = [each async for each in client.detect_folder(folder, in_flight=3)]
        all_done_and_none_twice(found, folder, server)
    assert server.most_at_once == 3


def test_results_can_come_in_the_images_order(folder: Path) -> None:
    with flaky(half_refused()) as server, Client(server.url, retry=OFTEN) as client:
        found = [each.filename for each in client.detect_folder(folder, ordered=True)]
    expected = [
        f"part{part}/{name}"
        for part in range(3)
        for name in sorted(f"{i}.jpg" for i in range(IMAGES // 3))
    ]
    assert found == expected


def test_a_date_past_the_deadline_is_told_at_once() -> None:
    now = datetime.now(UTC)
    headers = {
        "Date": format_datetime(now, usegmt=True),
        "Retry-After": format_datetime(now + timedelta(hours=1), usegmt=True),
    }
    with (
        flaky(lambda *_: Reply(503, headers)) as server,
        Client(server.url, retry=OFTEN) as client,
        pytest.raises(Unavailable, match="come again in 3600 s") as raised,
    ):
        client.detect(b"image 0")
    assert server.requests == 1
    assert (raised.value.status, raised.value.code) == (503, "queue_full")
    assert (raised.value.retry_after_s, raised.value.request_id) == (3600, "r1")


def test_a_server_that_hangs_is_asked_again() -> None:
    asked_again = threading.Event()

    def decide(request: int, images: list[bytes]) -> Reply | None:
        if request == 0:
            return Reply(hang_until=asked_again)
        asked_again.set()
        return None

    with flaky(decide) as server, Client(server.url, retry=OFTEN, timeout_s=0.2) as client:
        assert client.detect(b"image 5")[0].width == 5
    assert server.requests == 2


def test_where_nobody_listens_the_address_is_told() -> None:
    with flaky(lambda *_: None) as server:
        pass
    twice = Retry(attempts=2, deadline_s=5, first_wait_s=0.001, longest_wait_s=0.001)
    with Client(server.url, retry=twice) as client:
        with pytest.raises(Unreachable, match=rf"{server.url}.*refused.*asked 2 times"):
            client.detect(b"image 0")
        with pytest.raises(Unreachable):
            client.health()


def test_a_folder_ends_with_the_server_and_what_was_done_has_been_told(folder: Path) -> None:
    gone = Retry(attempts=2, first_wait_s=0.001, longest_wait_s=0.001)
    found: list[ImageResult] = []
    with (
        flaky(lambda request, _: None if request < 10 else Reply(503)) as server,
        Client(server.url, retry=gone) as client,
    ):
        stream = client.detect_folder(folder, images_per_request=1, in_flight=2)
        with pytest.raises(Unavailable):
            collect(stream, found)
    assert {digest(b"image %d" % (each.width or 0)) for each in found} == set(server.taken)


def test_images_that_the_server_fails_on_are_results_and_the_others_go_on(folder: Path) -> None:
    bad = b"image 8"

    def decide(request: int, images: list[bytes]) -> Reply | None:
        return Reply(500, code="inference_failed") if bad in images else None

    with flaky(decide) as server, Client(server.url, retry=OFTEN) as client:
        found = list(client.detect_folder(folder))
        with pytest.raises(ServerFailed):
            client.detect(bad)
    (failed,) = [each for each in found if not each.ok]
    assert failed.filename == "part1/2.jpg"
    assert failed.error is not None
    assert failed.error.code == "inference_failed"
    assert len(found) == IMAGES
    assert set(server.taken.values()) == {1}


def test_requests_grow_smaller_where_the_server_takes_fewer_images(folder: Path) -> None:
    def decide(request: int, images: list[bytes]) -> Reply | None:
        return Reply(413, code="too_many_images") if len(images) > 3 else None

    with flaky(decide) as server, Client(server.url, retry=OFTEN) as client:
        found = list(client.detect_folder(folder, images_per_request=16, in_flight=1))
        all_done_and_none_twice(found, folder, server)
        assert server.requests - len(server.sizes) <= 3, "what was refused once is asked again"


def test_a_image_larger_than_a_body_may_be_is_a_result_with_an_error() -> None:
    with (
        flaky(lambda *_: Reply(413, code="body_too_large")) as server,
        Client(server.url, retry=OFTEN) as client,
    ):
        found = client.detect([b"image 1", b"image 2", b"image 3"])
    assert [each.error and each.error.code for each in found] == ["body_too_large"] * 3


def test_a_stream_takes_images_only_when_there_is_room_for_them() -> None:
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield b"image %d" % (i + 1)

    with flaky(half_refused()) as server, Client(server.url, retry=OFTEN) as client:
        stream = client.stream(images(), in_flight=2, images_per_request=3)
        for done, _ in enumerate(stream):
            assert taken <= done + 1 + 2 * 2 * 3
            if done == 50:
                break
        stream.close()
    assert taken < 80


@contextmanager
def camera() -> Iterator[tuple[Flaky, Iterator[bytes], threading.Event]]:
    """A server, images that come once it was asked for those before, and what ends them."""
    asked, heard = threading.Semaphore(0), threading.Event()

    def images() -> Iterator[bytes]:
        for number in range(1, 60):
            yield b"image %d" % number
            assert asked.acquire(timeout=20)
            if heard.is_set():
                return

    with flaky(lambda *_: asked.release()) as server:
        yield server, images(), heard


def test_what_is_done_does_not_wait_for_images_that_come_late() -> None:
    with camera() as (server, images, heard), Client(server.url) as client:
        for _ in client.stream(images, in_flight=64, images_per_request=1):
            heard.set()
    assert server.requests < 59


async def test_nor_does_it_with_the_asynchronous_client() -> None:
    with camera() as (server, images, heard):
        async with AsyncClient(server.url) as client:
            async for _ in client.stream(images, in_flight=64, images_per_request=1):
                heard.set()
    assert server.requests < 59


async def test_a_stream_that_is_left_gives_up_its_requests_at_once() -> None:
    never = threading.Event()
    with flaky(lambda request, _: Reply(hang_until=never) if request else None) as server:
        async with AsyncClient(server.url, retry=OFTEN) as client:
            stream = client.stream((b"image %d" % (i + 1) for i in range(9)), images_per_request=1)
            first = await anext(stream)
            assert first.ok
            await stream.aclose()
        never.set()
