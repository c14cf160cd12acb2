import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from server.errors import DeadlineExceeded, InferenceFailed, QueueFull, SessionLost
from server.serving.batcher import Batcher
from server.serving.fair_queue import InferenceResult

pytestmark = pytest.mark.anyio
Numbers = Batcher[int, int]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Broken(BaseException):
    """What no batch may catch: the loop itself is at fault."""


class Recorder:
    """A stand-in for the model that multiplies by ten and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.sole: list[bool] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def __call__(self, items: Sequence[int], sole: bool) -> list[int]:
        self.batches.append(list(items))
        self.sole.append(sole)
        self.started.set()
        await self.release.wait()
        if 13 in items:
            raise RuntimeError("unlucky")
        if 14 in items:
            return []
        if 15 in items:
            raise Broken("the loop")
        if 16 in items:
            raise SessionLost("the device")
        return [item * 10 for item in items]


@asynccontextmanager
async def serving(model: Recorder, **limits: float) -> AsyncIterator[Numbers]:
    batcher: Numbers = Batcher(
        model,
        bucket=lambda item: item // 100,
        max_batch_size=int(limits.get("max_batch_size", 4)),
        max_queue_delay_s=limits.get("max_queue_delay_s", 0.0),
        max_queue_images=int(limits.get("max_queue_images", 64)),
        instances=int(limits.get("instances", 1)),
        spread=bool(limits.get("spread", True)),
    )
    task = asyncio.create_task(batcher.serve())
    try:
        yield batcher
    finally:
        task.cancel()
        await asyncio.wait([task])


async def submit(batcher: Numbers, item: int, deadline: float = math.inf) -> int:
    with batcher.reserve(1) as reservation:
        answer = await reservation.submit(item, deadline)
    assert isinstance(answer, InferenceResult)
    return answer.result


async def test_items_that_wait_together_share_a_batch() -> None:
    model = Recorder()
    async with serving(model, max_batch_size=4) as batcher:
        results = await asyncio.gather(*(submit(batcher, i) for i in range(6)))
    assert results == [0, 10, 20, 30, 40, 50]
    assert model.batches == [[0, 1, 2, 3], [4, 5]]


async def test_a_batch_holds_one_bucket_and_the_oldest_goes_first() -> None:
    model = Recorder()
    async with serving(model, max_batch_size=4) as batcher:
        items = [201, 1, 202, 2, 101, 3]
        results = await asyncio.gather(*(submit(batcher, i) for i in items))
    assert results == [i * 10 for i in items]
    assert model.batches == [[201, 202], [1, 2, 3], [101]]


async def test_a_lone_item_does_not_wait_for_company_that_cannot_come() -> None:
    model = Recorder()
    async with serving(model, max_queue_delay_s=3600) as batcher, asyncio.timeout(5):
        assert await submit(batcher, 7) == 70


async def test_a_batch_waits_for_an_image_that_is_on_its_way() -> None:
    model = Recorder()
    async with serving(model, max_queue_delay_s=3600) as batcher, asyncio.timeout(5):
        with batcher.reserve(2) as reservation:
            first = asyncio.create_task(reservation.submit(1))
            await asyncio.sleep(0)
            assert model.batches == []
            second = asyncio.create_task(reservation.submit(2))
            assert [(await first).result, (await second).result] == [10, 20]
    assert model.batches == [[1, 2]]


async def test_a_batch_goes_when_the_image_on_its_way_is_given_up() -> None:
    model = Recorder()
    async with serving(model, max_queue_delay_s=3600) as batcher, asyncio.timeout(5):
        with batcher.reserve(2) as reservation:
            first = asyncio.create_task(reservation.submit(1))
            await asyncio.sleep(0)
            reservation.release()
            assert (await first).result == 10


async def test_a_batch_waits_no_longer_than_the_max_queue_delay() -> None:
    model = Recorder()
    async with serving(model, max_queue_delay_s=0.01) as batcher, asyncio.timeout(5):
        with batcher.reserve(2) as reservation:
            answer = await reservation.submit(7)
    assert model.batches == [[7]]
    assert answer.queue_s >= 0.009


async def test_a_full_batch_does_not_wait() -> None:
    model = Recorder()
    async with (
        serving(model, max_batch_size=2, max_queue_delay_s=3600) as batcher,
        asyncio.timeout(5),
    ):
        with batcher.reserve(3) as reservation:
            await asyncio.gather(reservation.submit(1), reservation.submit(2))
    assert model.batches == [[1, 2]]


@pytest.mark.parametrize("unlucky", [13, 14], ids=["raises", "loses results"])
async def test_one_bad_item_takes_no_neighbour_along(unlucky: int) -> None:
    model = Recorder()
    async with serving(model, max_batch_size=3) as batcher:
        outcomes = await asyncio.gather(
            *(submit(batcher, i) for i in (1, unlucky, 2, 3)), return_exceptions=True
        )
    assert isinstance(outcomes[1], InferenceFailed)
    assert [outcomes[0], *outcomes[2:]] == [10, 20, 30]
    assert model.batches == [[1, unlucky, 2], [1], [unlucky], [2], [3]]


async def test_what_fails_alone_is_not_tried_again() -> None:
    model = Recorder()
    async with serving(model) as batcher:
        with pytest.raises(InferenceFailed):
            await submit(batcher, 13)
    assert model.batches == [[13]]


async def test_each_item_of_a_failed_batch_has_an_error_of_its_own() -> None:
    async with serving(Recorder(), max_batch_size=2) as batcher:
        outcomes = await asyncio.gather(
            *(submit(batcher, i) for i in (13, 13)), return_exceptions=True
        )
    assert [type(o) for o in outcomes] == [InferenceFailed, InferenceFailed]
    assert outcomes[0] is not outcomes[1]


async def test_a_single_image_does_not_wait_for_all_images_of_a_large_request() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1) as batcher:
        with batcher.reserve(8) as reservation:
            many = [asyncio.create_task(reservation.submit(i)) for i in range(20, 28)]
            await model.started.wait()
            single = asyncio.create_task(submit(batcher, 1))
            await asyncio.sleep(0)
            model.release.set()
            assert await single == 10
            assert [(await each).result for each in many] == [i * 10 for i in range(20, 28)]
    assert model.batches == [[20], [1], *([i] for i in range(21, 28))]


async def test_two_large_requests_take_turns() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1) as batcher:
        with batcher.reserve(4) as first, batcher.reserve(3) as second:
            tasks = [asyncio.create_task(first.submit(i)) for i in (20, 21, 22, 23)]
            await model.started.wait()
            tasks += [asyncio.create_task(second.submit(i)) for i in (30, 31, 32)]
            await asyncio.sleep(0)
            model.release.set()
            await asyncio.gather(*tasks)
    order = [item for (item,) in model.batches]
    assert [i for i in order if i < 30] == [20, 21, 22, 23]
    assert [i for i in order if i >= 30] == [30, 31, 32]
    assert all(abs(order.index(21 + i) - order.index(30 + i)) <= 2 for i in range(3))


async def submit_until(batcher: Numbers, item: int, ended: asyncio.Event) -> None:
    while not ended.is_set():
        await submit(batcher, item)


@pytest.mark.parametrize("clients", [2, 40])
async def test_a_large_request_is_served_though_single_images_never_cease(clients: int) -> None:
    model = Recorder()
    async with serving(model, max_batch_size=1) as batcher, asyncio.timeout(10):
        ended = asyncio.Event()
        singles = [
            asyncio.create_task(submit_until(batcher, 20 + i, ended)) for i in range(clients)
        ]
        with batcher.reserve(16) as reservation:
            await asyncio.gather(*(reservation.submit(100 + i) for i in range(16)))
        ended.set()
        await asyncio.gather(*singles)
    first, last = (model.batches.index([item]) for item in (100, 115))
    # As four single clients would: in their time each of the others has about four images.
    assert 2 * clients <= last - first <= 16 + 5 * clients


async def test_a_single_image_waits_for_a_few_of_each_large_request() -> None:
    model = Recorder()
    async with serving(model, max_batch_size=1) as batcher, asyncio.timeout(10):
        with batcher.reserve(16) as one, batcher.reserve(16) as other:
            many = [each.submit(item) for item in range(20, 36) for each in (one, other)]
            tasks = [asyncio.create_task(each) for each in many]
            while len(model.batches) < 10:  # noqa: ASYNC110  # a batch more has no event
                await asyncio.sleep(0)
            before = len(model.batches)
            assert await submit(batcher, 1) == 10
            await asyncio.gather(*tasks)
    assert model.batches.index([1]) - before <= 3


async def test_more_instances_are_used_at_once() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1) as batcher, asyncio.timeout(5):
        tasks = [asyncio.create_task(submit(batcher, i)) for i in (1, 2)]
        await model.started.wait()
        model.started.clear()
        batcher.resize(instances=2, max_batch_size=1)
        await model.started.wait()
        model.release.set()
        await asyncio.gather(*tasks)


async def test_what_became_late_while_its_batch_failed_is_not_tried_again() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model) as batcher:
        soon = asyncio.get_running_loop().time() + 0.01
        tasks = [
            asyncio.create_task(submit(batcher, i, at)) for i, at in ((13, math.inf), (1, soon))
        ]
        await model.started.wait()
        asyncio.get_running_loop().call_at(soon, model.release.set)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InferenceFailed, DeadlineExceeded]
    assert model.batches == [[13, 1], [13]]


async def test_instances_run_side_by_side_and_share_what_waits_before_batches_grow() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=4, instances=2) as batcher:
        tasks = [asyncio.create_task(submit(batcher, i)) for i in range(6)]
        for _ in range(3):  # the items are put in, the first batch starts, the second
            await asyncio.sleep(0)
        assert batcher.running_batches == 2
        assert batcher.queue_images == 0
        model.release.set()
        assert await asyncio.gather(*tasks) == [i * 10 for i in range(6)]
    assert model.batches == [[0, 1, 2], [3, 4, 5]]


async def test_instances_of_one_gpu_let_batches_grow_first() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=4, instances=2, spread=False) as batcher:
        tasks = [asyncio.create_task(submit(batcher, i)) for i in range(6)]
        for _ in range(4):
            await asyncio.sleep(0)
        # Two are left: beside a batch that runs they wait for company, or for its end.
        assert (batcher.running_batches, batcher.queue_images) == (1, 2)
        tasks += [asyncio.create_task(submit(batcher, i)) for i in (6, 7)]
        for _ in range(4):
            await asyncio.sleep(0)
        assert (batcher.running_batches, batcher.queue_images) == (2, 0)
        model.release.set()
        await asyncio.gather(*tasks)
        assert await submit(batcher, 8) == 80  # alone, it waits for nobody
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


async def test_what_waited_for_the_end_of_a_batch_starts_beside_full_ones() -> None:
    release = [asyncio.Event() for _ in range(4)]
    batches: list[list[int]] = []

    async def model(items: Sequence[int], sole: bool) -> list[int]:
        batches.append(list(items))
        await release[len(batches) - 1].wait()
        return list(items)

    batcher: Numbers = Batcher(
        model,
        bucket=lambda item: item // 100,
        max_queue_delay_s=0.0,
        max_queue_images=64,
        instances=2,
        max_batch_size=2,
        spread=False,
    )
    serve = asyncio.create_task(batcher.serve())
    # Two full batches, and one item of another bucket, which never has company.
    tasks = [asyncio.create_task(submit(batcher, i)) for i in (0, 1, 2, 3, 100)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert batches == [[0, 1], [2, 3]]
    tasks += [asyncio.create_task(submit(batcher, i)) for i in (4, 5)]
    for _ in range(5):
        await asyncio.sleep(0)
    release[0].set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert batches == [[0, 1], [2, 3], [100]]  # it came before the full one, and has waited
    for each in release:
        each.set()
    await asyncio.gather(*tasks)
    assert batches[3:] == [[4, 5]]
    serve.cancel()
    await asyncio.wait([serve])


async def test_only_what_has_the_model_for_itself_is_said_to_be_alone() -> None:
    model = Recorder()
    async with serving(model, max_batch_size=1, instances=2) as batcher:
        await submit(batcher, 1)
        await asyncio.gather(submit(batcher, 2), submit(batcher, 3))
        with batcher.reserve(1):  # somebody's image is on its way
            await submit(batcher, 4)
    assert model.batches == [[1], [2], [3], [4]]
    assert model.sole == [True, False, False, False]


async def test_a_failure_keeps_its_cause_for_the_log() -> None:
    async with serving(Recorder()) as batcher:
        with pytest.raises(InferenceFailed) as failed:
            await submit(batcher, 13)
    assert isinstance(failed.value.__cause__, RuntimeError)


async def test_a_client_that_gives_up_does_not_disturb_its_batch() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model) as batcher:
        tasks = [asyncio.create_task(submit(batcher, i)) for i in (1, 2, 3)]
        await model.started.wait()
        tasks[0].cancel()
        model.release.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [20, 30]
    assert model.batches == [[1, 2, 3]]


async def test_no_model_call_and_no_place_for_clients_that_gave_up_while_waiting() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1, max_queue_images=1) as batcher:
        first = asyncio.create_task(submit(batcher, 1))
        await model.started.wait()
        second = asyncio.create_task(submit(batcher, 2))
        await asyncio.sleep(0)
        assert batcher.queue_images == 1
        second.cancel()
        await asyncio.wait([second])
        assert batcher.queue_images == 0
        third = asyncio.create_task(submit(batcher, 3))
        model.release.set()
        assert [await first, await third] == [10, 30]
    assert model.batches == [[1], [3]]


async def test_a_bucket_whose_every_client_gave_up_does_not_end_the_loop() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1) as batcher, asyncio.timeout(5):
        running = asyncio.create_task(submit(batcher, 1))
        await model.started.wait()
        given_up = asyncio.create_task(submit(batcher, 101))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        model.release.set()
        assert await running == 10
        assert await submit(batcher, 2) == 20


async def test_an_item_past_its_deadline_is_not_run() -> None:
    model = Recorder()
    async with serving(model) as batcher:
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, 1, deadline=asyncio.get_running_loop().time())
        assert await submit(batcher, 2) == 20
    assert model.batches == [[2]]


async def test_a_full_queue_is_refused_at_once() -> None:
    model = Recorder()
    model.release.clear()
    async with serving(model, max_batch_size=1, max_queue_images=2) as batcher:
        running = asyncio.create_task(submit(batcher, 1))
        await model.started.wait()
        waiting = [asyncio.create_task(submit(batcher, i)) for i in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await submit(batcher, 4)
        model.release.set()
        assert [await running, *[await task for task in waiting]] == [10, 20, 30]


async def test_a_request_is_taken_with_all_its_images_or_not_at_all() -> None:
    async with serving(Recorder(), max_queue_images=4) as batcher:
        with batcher.reserve(3):
            refused = batcher.reserve(2)
            with pytest.raises(QueueFull, match="3 images already wait and 2 more came"):
                refused.__enter__()
            assert batcher.queue_images == 3
        assert batcher.queue_images == 0


@pytest.mark.parametrize(("fatal", "error"), [(15, Broken), (16, SessionLost)])
async def test_the_end_of_the_loop_fails_what_runs_and_what_waits(
    fatal: int, error: type[BaseException]
) -> None:
    model = Recorder()
    model.release.clear()
    batcher: Numbers = Batcher(
        model,
        bucket=lambda item: item,
        max_batch_size=1,
        max_queue_delay_s=0,
        max_queue_images=8,
    )
    loop_task = asyncio.create_task(batcher.serve())
    tasks = [asyncio.create_task(submit(batcher, i)) for i in (fatal, 2)]
    await model.started.wait()
    model.release.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(o) for o in outcomes] == [InferenceFailed, InferenceFailed]
    with pytest.raises(error):
        await loop_task
    with pytest.raises(InferenceFailed):
        await submit(batcher, 3)
    assert (batcher.queue_images, batcher.running_batches) == (0, 0)


async def test_a_session_lost_while_items_are_tried_again_fails_the_rest_of_them() -> None:
    async with serving(Recorder(), max_batch_size=4) as batcher, asyncio.timeout(5):
        outcomes = await asyncio.gather(
            *(submit(batcher, i) for i in (1, 13, 16, 2)), return_exceptions=True
        )
    assert outcomes[0] == 10
    assert [type(outcome) for outcome in outcomes[1:]] == [InferenceFailed] * 3


async def test_retry_after_grows_with_the_queue_and_is_at_least_a_second() -> None:
    model = Recorder()
    async with serving(model, max_batch_size=1, max_queue_images=10_000) as batcher:
        assert batcher.retry_after_s() == 1
        model.release.clear()
        asyncio.get_running_loop().call_later(0.02, model.release.set)
        await submit(batcher, 1)  # at most 50 a second from now on
        with batcher.reserve(200):
            assert 4 <= batcher.retry_after_s() <= 60
        assert batcher.retry_after_s() == 1
