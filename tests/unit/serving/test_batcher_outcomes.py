"""Whatever happens to a batcher, in whatever order: each item has exactly one outcome."""

import asyncio
import math
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.errors import DeadlineExceeded, InferenceFailed, QueueFull, SessionLost
from server.serving.batcher import Batcher, Reservation
from server.serving.fair_queue import InferenceResult

MAX_QUEUE_IMAGES = 12
BUCKETS = 3
LIMIT_S = 20
Task = asyncio.Task[InferenceResult[int]]


@dataclass
class Request:
    """What one client holds."""

    context: AbstractContextManager[Reservation[int, int]]
    reservation: Reservation[int, int]
    held: int
    tasks: list[Task] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """An inference that has begun."""

    items: list[int]
    end: asyncio.Future[str]


class Clients(RuleBasedStateMachine):
    """Clients that come, submit, give up and leave; a model that answers, fails or is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.batcher = Batcher[int, int](
            self.model,
            bucket=lambda item: item % BUCKETS,
            max_queue_delay_s=0,
            max_queue_images=MAX_QUEUE_IMAGES,
        )
        self.requests: list[Request] = []
        self.calls: list[Call] = []
        self.tasks: list[Task] = []  # one an item
        self.runs: list[list[tuple[int, str]]] = []  # of each item: size of the batch, its end
        self.cancelled: set[int] = set()
        self.late: set[int] = set()
        self.lost = False
        self.serving = self.do(self.begin())

    async def begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.batcher.serve())

    async def model(self, items: Sequence[int], sole: bool) -> list[int]:
        call = Call(list(items), asyncio.get_running_loop().create_future())
        assert len(self.calls) < self.batcher.instances
        assert 1 <= len(items) <= self.batcher.max_batch_size
        assert len({item % BUCKETS for item in items}) == 1
        assert not sole or (not self.calls and self.batcher.queue_images == 0)
        self.calls.append(call)
        end = "lost"
        try:
            end = await call.end
        finally:
            self.calls.remove(call)
            for item in items:
                self.runs[item].append((len(items), end))
        if end == "raises":
            raise ValueError("a bad batch")
        if end == "lost":
            raise SessionLost("the device")
        return [10 * item for item in items[: -1 if end == "short" else None]]

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does something, and lets everybody react to it."""

        async def settle() -> Any:
            async with asyncio.timeout(LIMIT_S):  # an item without an outcome would wait forever
                done = await work
            for _ in range(30):
                await asyncio.sleep(0)
            return done

        return self.runner.run(settle())

    @rule(images=st.integers(1, 9))
    def comes(self, images: int) -> None:
        async def reserve() -> None:
            free = MAX_QUEUE_IMAGES - self.batcher.queue_images
            context = self.batcher.reserve(images)
            if images > free:
                with pytest.raises(QueueFull):
                    context.__enter__()
                return
            self.requests.append(Request(context, context.__enter__(), images))

        self.do(reserve())

    @precondition(lambda self: any(request.held for request in self.requests))
    @rule(data=st.data(), late=st.booleans(), times=st.integers(1, 4))
    def submits(self, data: st.DataObject, late: bool, times: int) -> None:
        request = data.draw(st.sampled_from([each for each in self.requests if each.held]))

        async def submit() -> None:
            for _ in range(min(times, request.held)):
                request.held -= 1
                item = len(self.tasks)
                if late:
                    self.late.add(item)
                task = asyncio.create_task(
                    request.reservation.submit(item, 0 if late else math.inf)
                )
                self.runs.append([])
                self.tasks.append(task)
                request.tasks.append(task)

        self.do(submit())

    @precondition(lambda self: any(request.held for request in self.requests))
    @rule(data=st.data())
    def has_a_broken_image(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([each for each in self.requests if each.held]))
        request.held -= 1

        async def release() -> None:
            request.reservation.release()

        self.do(release())

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)

        async def leave() -> None:
            await self.cancel(request.tasks)
            request.context.__exit__(None, None, None)

        self.do(leave())

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def gives_up_one(self, data: st.DataObject) -> None:
        self.do(self.cancel([data.draw(st.sampled_from(self.tasks))]))

    async def cancel(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task.cancel():
                self.cancelled.add(self.tasks.index(task))
        if tasks:
            await asyncio.wait(tasks)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), end=st.sampled_from(["ok", "ok", "raises", "short"]))
    def a_call_ends(self, data: st.DataObject, end: str) -> None:
        call = data.draw(st.sampled_from(self.calls))

        async def finish() -> None:
            call.end.set_result(end)

        self.do(finish())

    @rule(instances=st.integers(1, 3), max_batch_size=st.integers(1, 5))
    def another_model_is_loaded(self, instances: int, max_batch_size: int) -> None:
        if instances < len(self.calls):  # `model` looks at the limit of now
            return

        async def change() -> None:
            self.batcher.resize(instances=instances, max_batch_size=max_batch_size)

        self.do(change())

    @precondition(lambda self: self.calls and not self.lost)
    @rule(data=st.data(), rare=st.integers(0, 9))
    def the_session_is_lost(self, data: st.DataObject, rare: int) -> None:
        if rare:
            return
        call = data.draw(st.sampled_from(self.calls))
        self.lost = True

        async def lose() -> None:
            call.end.set_result("lost")

        self.do(lose())
        assert isinstance(self.serving.exception(), SessionLost)

    @invariant()
    def places_are_counted(self) -> None:
        running = {item for call in self.calls for item in call.items}
        waiting = [i for i, task in enumerate(self.tasks) if not task.done() and i not in running]
        retried = [i for i in waiting if self.runs[i]]  # they hold an instance and no place
        held = sum(request.held for request in self.requests)
        assert self.batcher.queue_images == held + len(waiting) - len(retried)
        assert self.batcher.running_batches == len(self.calls)

    @invariant()
    def nothing_waits_beside_a_free_instance(self) -> None:
        assert (
            self.lost
            or not self.batcher._waiting.images
            or len(self.calls) >= self.batcher.instances
        )

    @invariant()
    def each_item_has_its_own_outcome(self) -> None:
        for item, task in enumerate(self.tasks):
            runs = self.runs[item]
            assert len(runs) <= 2
            assert all(size == 1 for size, _ in runs[1:]), "it is tried again, alone, once"
            if not task.done():
                continue
            if task.cancelled():
                assert item in self.cancelled
                continue
            error = task.exception()
            if error is None:
                assert task.result().result == 10 * item
                assert runs[-1][1] == "ok"
            elif isinstance(error, DeadlineExceeded):
                assert item in self.late
                assert not runs
            else:
                assert isinstance(error, InferenceFailed)
                assert self.lost or runs[-1] in [(1, "raises"), (1, "short")]

    def teardown(self) -> None:
        async def end() -> None:
            self.serving.cancel()
            await asyncio.wait([self.serving, *self.tasks])
            for request in self.requests:
                request.context.__exit__(None, None, None)

        self.do(end())
        self.runner.close()
        self.each_item_has_its_own_outcome_at_last()

    def each_item_has_its_own_outcome_at_last(self) -> None:
        self.lost = True  # what was under way failed
        self.each_item_has_its_own_outcome()
        assert not self.calls
        assert (self.batcher.queue_images, self.batcher.running_batches) == (0, 0)
        assert self.batcher._waiting.weight == 0


TestClients = Clients.TestCase
TestClients.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
