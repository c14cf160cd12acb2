"""Memory for decoding: never too much, in the order of asking, and all of it comes back."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from server.errors import TooLarge
from server.serving.decode_pool import (
    LEAST_BYTES,
    DecodeMemoryLimiter,
    MemoryReservation,
    MemoryUnavailable,
    body_share,
    decoding_share,
)
from server.serving.threads import on_pool_until

pytestmark = pytest.mark.anyio
LIMIT_S = 20
MIB = 2**20


async def settled(*tasks: asyncio.Task[MemoryReservation]) -> list[bool]:
    """Which of these are done once the event loop has nothing more to do."""
    for _ in range(10):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def waiting(memory: DecodeMemoryLimiter, needed: int) -> asyncio.Task[MemoryReservation]:
    return asyncio.create_task(memory.wait_for(needed))


async def test_what_fits_is_there_at_once_and_comes_back() -> None:
    memory = DecodeMemoryLimiter(100)
    one, other = memory.reserve(), memory.reserve()
    one.require(40)
    one.require(30)  # no more than it has
    other.require(60)
    assert memory.taken == 100
    with pytest.raises(MemoryUnavailable) as full:
        one.require(41)
    assert full.value.needed == 41
    one.release()
    one.release()
    assert memory.taken == 60
    other.release()
    assert memory.taken == 0


async def test_what_never_fits_is_refused_with_both_numbers() -> None:
    memory = DecodeMemoryLimiter(100)
    with pytest.raises(TooLarge, match=r"up to 101 bytes .* has 100 for it") as refused:
        memory.reserve().require(101)
    assert refused.value.code == "too_much_memory"
    with pytest.raises(TooLarge):
        await memory.wait_for(101)
    assert memory.taken == 0


async def test_without_a_limit_nothing_waits() -> None:
    memory = DecodeMemoryLimiter()
    reservation = memory.reserve()
    reservation.require(2**50)
    other = await memory.wait_for(2**50)
    reservation.release()
    other.release()
    assert memory.taken == 0


async def test_a_large_image_is_not_overtaken_by_small_ones() -> None:
    memory = DecodeMemoryLimiter(100)
    first = memory.reserve()
    first.require(60)
    large, small = waiting(memory, 90), waiting(memory, 10)
    assert await settled(large, small) == [False, False]
    with pytest.raises(MemoryUnavailable):  # there are 40, and who comes now is not the first
        memory.reserve().require(10)
    first.release()
    assert await settled(large, small) == [True, True]
    assert memory.taken == 100
    large.result().release()
    small.result().release()
    memory.reserve().require(10)


async def test_one_that_gives_up_waiting_lets_the_next_pass() -> None:
    memory = DecodeMemoryLimiter(100)
    first = memory.reserve()
    first.require(60)
    large, small = waiting(memory, 90), waiting(memory, 10)
    await settled(large, small)
    large.cancel()
    assert await settled(large, small) == [True, True]
    assert memory.taken == 70
    small.result().release()
    first.release()
    assert memory.taken == 0


async def test_memory_that_comes_when_nobody_waits_any_more_is_not_lost() -> None:
    memory = DecodeMemoryLimiter(100)
    first = memory.reserve()
    first.require(60)
    large = waiting(memory, 90)
    await settled(large)
    first.release()
    large.cancel()  # before the event loop has told it
    await asyncio.wait([large])
    assert large.cancelled()
    assert memory.taken == 0


async def test_threads_never_take_more_than_there_is() -> None:
    memory, lock, held, most = DecodeMemoryLimiter(100), threading.Lock(), 0, 0

    def decode(reservation: MemoryReservation, needed: int) -> None:
        nonlocal held, most
        reservation.require(needed)
        with lock:
            held += needed
            most = max(most, held)
        with lock:
            held -= needed

    async def one(pool: ThreadPoolExecutor, needed: int) -> None:
        reservation = memory.reserve()
        while True:
            try:
                await on_pool_until(pool, partial(decode, reservation, needed), reservation.release)
                return
            except MemoryUnavailable as full:
                reservation = await memory.wait_for(full.needed)

    with ThreadPoolExecutor(8) as pool:
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for i in range(400):
                group.create_task(one(pool, 1 + i * 37 % 100))
    assert 0 < most <= 100
    assert memory.taken == 0


async def test_work_that_nobody_waits_for_any_more_gives_back_when_it_ends() -> None:
    ended, begun, go_on = (
        [threading.Event(), threading.Event()],
        threading.Event(),
        threading.Event(),
    )

    def work() -> None:
        begun.set()
        assert go_on.wait(LIMIT_S)

    with ThreadPoolExecutor(1) as pool:
        running = asyncio.create_task(on_pool_until(pool, work, ended[0].set))
        behind = asyncio.create_task(on_pool_until(pool, work, ended[1].set))
        await asyncio.to_thread(begun.wait, LIMIT_S)
        running.cancel()
        behind.cancel()
        await asyncio.wait([running, behind])
        assert [each.is_set() for each in ended] == [False, True]  # one never began
        go_on.set()
        assert await asyncio.to_thread(ended[0].wait, LIMIT_S)


async def test_work_that_fails_is_kept_by_nobody() -> None:
    class File:
        pass

    def fail(file: File) -> None:
        raise ValueError(file)

    gc.disable()  # the server's looks rarely
    try:
        file = File()
        kept = weakref.ref(file)
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ValueError, match="File"):
                await on_pool_until(pool, partial(fail, file), lambda: None)
            del file
            await asyncio.wrap_future(pool.submit(str))  # the thread has turned to something else
            assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("limit", "uploads"), [(512, 64), (1024, 128), (2048, 256), (64 * 1024, 256)]
)
def test_bodies_have_an_eighth_and_256_mib_at_most(limit: int, uploads: int) -> None:
    assert body_share(limit * MIB) == uploads * MIB


def test_decoding_has_what_is_left_and_never_nothing() -> None:
    parts = {
        "resident_bytes": 160 * MIB,
        "canvas_bytes": 63 * MIB,
        "inflight_body_bytes": 128 * MIB,
    }
    assert decoding_share(1024 * MIB, **parts) == (1024 - 128 - 160 - 63 - 128) * MIB
    assert decoding_share(256 * MIB, **parts) == LEAST_BYTES
