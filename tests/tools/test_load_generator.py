import asyncio
import itertools
import math
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.http_client import Answer, Client, NoAnswer, Request, request_wire
from benchmarks.load.loops import Load, Outcome, closed_loop, in_turn, open_loop, poisson, uniform
from benchmarks.load.summary import percentile, summarize
from benchmarks.load.usage import tree_usage

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIMIT_S = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Stub:
    """A server that answers each request with the bytes that `answer` gives for its number."""

    answer: Callable[[int], Awaitable[bytes]]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = (
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                self.requests.append(await reader.readexactly(length))
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                answer = await self.answer(len(self.requests))
                self.under_way -= 1
                if not answer:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def stub(answer: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[Stub]:
    running = Stub(answer)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(LIMIT_S):
        try:
            yield running
        finally:
            server.close()


async def answer_ok(_: int) -> bytes:
    return OK


def request(body: bytes = b"", **about: object) -> Request:
    return Request(request_wire("POST", "/detect", body), **about)  # type: ignore[arg-type]


async def test_a_closed_loop_has_one_request_of_each_client_under_way() -> None:
    all_came = asyncio.Event()

    async def hold(number: int) -> bytes:
        if number == 3:
            all_came.set()
        await all_came.wait()
        await asyncio.sleep(0)  # a fourth would come now
        return OK

    async with stub(hold) as server, Client(server.url) as client:
        load = await closed_loop(client, in_turn([request()]), clients=3, seconds=0.1, warm_s=0)
    assert server.most_under_way == 3
    assert client.connections_made == 3
    assert len(load.outcomes) == len(server.requests) > 3
    assert all(each.good for each in load.outcomes)


async def test_requests_go_out_in_turn_with_their_bodies() -> None:
    async with stub(answer_ok) as server, Client(server.url) as client:
        pick = in_turn([request(b"a"), request(b"bb")])
        await closed_loop(client, pick, clients=1, seconds=0.1, warm_s=0)
    assert server.requests[:4] == [b"a", b"bb", b"a", b"bb"]


async def test_arrivals_of_an_open_loop_wait_for_no_answer_and_count_from_their_own_time() -> None:
    all_came = asyncio.Event()

    async def hold(number: int) -> bytes:
        if number == 5:
            all_came.set()
        await all_came.wait()
        return OK

    async with stub(hold) as server, Client(server.url) as client:
        load = await open_loop(client, in_turn([request()]), uniform(50, 0.1), seconds=0.1)
    assert server.most_under_way == 5
    outcomes = sorted(load.outcomes, key=lambda each: each.intended_s)
    gaps = [b.intended_s - a.intended_s for a, b in itertools.pairwise(outcomes)]
    assert gaps == pytest.approx([0.02] * 4)
    # The first pays for all that came after it until the server moved again.
    assert all(each.ended_s >= outcomes[-1].started_s for each in outcomes)


async def test_an_open_loop_that_is_late_skips_nothing() -> None:
    async with stub(answer_ok) as server, Client(server.url) as client:
        load = await open_loop(client, in_turn([request()]), [0.0] * 20, seconds=0.05)
    assert len(load.outcomes) == len(server.requests) == 20


async def test_an_answer_in_chunks_is_read_whole_and_the_connection_kept() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    chunks = head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    async def answer(_: int) -> bytes:
        return chunks

    async with stub(answer) as server, Client(server.url) as client:
        for _ in range(2):
            answered = await client.ask(request())
            assert (answered.status, answered.body, answered.headers["x-a"]) == (200, b"abc", "b")
        assert client.connections_made == 1


async def test_a_connection_that_the_server_wants_closed_is_not_used_again() -> None:
    async def answer(_: int) -> bytes:
        return OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async with stub(answer) as server, Client(server.url) as client:
        await client.ask(request())
        await client.ask(request())
        assert client.connections_made == 2


@pytest.mark.parametrize(
    ("answer", "reason"), [(b"", "disconnected"), (b"SSH-2.0\r\n\r\n", "malformed")]
)
async def test_no_answer_has_a_reason(answer: bytes, reason: str) -> None:
    async def give(_: int) -> bytes:
        return answer

    async with stub(give) as server, Client(server.url) as client:
        with pytest.raises(NoAnswer, match=reason):
            await client.ask(request())


async def test_a_client_that_leaves_closes_its_connection() -> None:
    never = asyncio.Event()

    async def hold(number: int) -> bytes:
        if number == 1:
            await never.wait()
        return OK

    async with stub(hold) as server, Client(server.url) as client:
        with pytest.raises(NoAnswer, match="left"):
            await client.ask(request(leave_after_s=0.01))
        assert (await client.ask(request())).body == b"ok"
        assert client.connections_made == 2
        never.set()


async def test_nobody_listens() -> None:
    async with stub(answer_ok) as server:
        url = server.url
    async with Client(url) as client:
        with pytest.raises(NoAnswer, match="connect"):
            await client.ask(request())


async def test_refusals_and_wrong_answers_are_counted_and_are_not_goodput() -> None:
    async def every_third(number: int) -> bytes:
        if number % 3 == 0:
            return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
        return OK if number % 3 == 1 else OK.replace(b"\r\nok", b"\r\nno")

    def check(answer: Answer) -> str | None:
        return None if answer.body == b"ok" else "not ok"

    asked = request(check=check, images=2)
    async with stub(every_third) as server, Client(server.url) as client:
        load = await open_loop(client, in_turn([asked]), [0.0] * 9, seconds=0.2)
    found = summarize(load)
    assert found.statuses == {"200": 6, "503": 3}
    assert found.wrong == {"not ok": 3}
    assert found.images_per_s * found.seconds == pytest.approx(2 * 3)


def test_latency_counts_from_when_a_request_should_have_been_sent() -> None:
    stalled = Outcome(intended_s=1.0, started_s=5.0, ended_s=6.0, status=200, images=1, error=None)
    found = summarize(Load([stalled], (0.0, 10.0), True, 0.5, None))
    assert found.p50_ms == pytest.approx(5000)
    assert found.late_p99_ms == pytest.approx(4000)
    assert found.images_per_s == pytest.approx(0.1)
    assert found.generator_cpus == pytest.approx(0.05)


def test_what_ends_after_the_window_is_no_goodput_but_an_open_loop_still_waits_for_it() -> None:
    late = Outcome(intended_s=0.5, started_s=0.5, ended_s=3.0, status=200, images=1, error=None)
    found = summarize(Load([late], (0.0, 1.0), True, 0.0, None))
    assert (found.images_per_s, found.requests) == (0, 1)
    assert found.p99_ms == pytest.approx(2500)
    assert summarize(Load([late], (0.0, 1.0), False, 0.0, None)).requests == 0


def test_poisson_arrivals_come_at_the_rate_and_at_random() -> None:
    arrivals = poisson(100, 100, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert arrivals == sorted(arrivals) == poisson(100, 100, seed=1) != poisson(100, 100, seed=2)
    assert arrivals[0] >= 0
    assert arrivals[-1] < 100
    assert len(arrivals) == pytest.approx(10_000, abs=5 * 100)  # five standard deviations
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.1)  # of an exponential distribution


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_so_many_percent_do_not_exceed_a_percentile_and_no_smaller_value_will_do(
    values: list[float], percent: float
) -> None:
    ascending = sorted(values)
    found = percentile(ascending, percent)
    wanted = len(values) * percent / 100
    assert found in values
    assert sum(value <= found for value in values) >= wanted
    assert found == ascending[0] or sum(value < found for value in values) < wanted


def test_the_use_of_a_tree_of_processes_counts_its_children() -> None:
    # The child says itself that it runs: between fork and exec its memory is neither's.
    command = ["sh", "-c", "exec 3<&0; sh -c 'echo $$; read line' <&3 & wait"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        both, one = tree_usage(process.pid), tree_usage(child)
        assert (both.processes, one.processes) == (2, 1)
        assert both.rss_bytes > one.rss_bytes > 0
        assert both.pss_bytes > 0
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
