import asyncio
import threading

import pytest

from server.serving.decode_pool import DecodePool, MemoryReservation
from server.serving.threads import ClientLeft

pytestmark = pytest.mark.anyio
LIMIT_S = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_what_nobody_waits_for_any_more_does_not_begin_and_holds_no_memory() -> None:
    decoding = DecodePool(threads=1, max_image_pixels=1000)
    begun, gate, left = threading.Event(), threading.Event(), threading.Event()
    ran: list[str] = []

    def first(reservation: MemoryReservation) -> None:
        reservation.require(1000)
        begun.set()
        assert gate.wait(LIMIT_S)

    def second(reservation: MemoryReservation) -> None:
        reservation.require(1000)
        ran.append("second")

    running = asyncio.create_task(decoding.run(first, threading.Event()))
    await asyncio.to_thread(begun.wait, LIMIT_S)
    waiting = asyncio.create_task(decoding.run(second, left))
    await asyncio.sleep(0)  # it waits for the thread
    left.set()
    gate.set()
    await running
    with pytest.raises(ClientLeft):
        await waiting
    assert (ran, decoding.memory.taken) == ([], 0)
    decoding.shut_down()
