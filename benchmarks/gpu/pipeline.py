"""(b) The pipeline without HTTP in one process: decode, letterbox, calls in batches, NMS."""

import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.gpu.bench import PARAMETERS, Bench, Figures
from benchmarks.gpu.raw import reason
from benchmarks.gpu.rounds import AT_LEAST, Round, Window, spread, turns
from benchmarks.serving.limit import LimitArrangement, Pipeline
from server.errors import ServerError
from server.host import available_cpus
from server.inference.artifact import Metadata
from server.inference.engine import OpenSession, SessionPool

FINALISTS = 3
TRIALS_SHARE = 0.45  # of the time
WARM_S = 0.3


def measure(bench: Bench) -> Generator[Figures]:
    """Tries all arrangements for a moment, and the best of them in turns."""
    figures: Figures = {"model": bench.served, "failed": {}}
    tried = candidates(bench.job.batches, available_cpus())
    seconds = max(0.2, TRIALS_SHARE * bench.deadline.left_s / len(tried) - WARM_S)
    with ExitStack() as opened:
        instances = Instances(bench, opened, max(each.batch for each in tried))
        trials: dict[str, float] = {}
        until_s = bench.deadline.left_s * (1 - TRIALS_SHARE)
        for each in tried:
            if trials and bench.deadline.left_s < until_s:
                break
            try:
                rate = instances.rate(each, seconds, WARM_S)
            except ServerError as error:
                figures["failed"][str(each)] = reason(error)
                continue
            trials[str(each)] = rate.images_per_s
            figures["trials"] = trials
            yield figures
        chosen = sorted(trials, key=lambda each: -trials[each])[:FINALISTS]
        window_s = min(4.0, max(0.2, 0.8 * bench.deadline.left_s / (4 * len(chosen)) - WARM_S))
        measures = {
            name: instances.window(LimitArrangement.parse(name), window_s) for name in chosen
        }
        for rounds in turns(measures, bench.deadline, at_most=8):
            figures |= summary(rounds, chosen)
            yield figures


def candidates(batches: Sequence[int], cpus: int) -> list[LimitArrangement]:
    """Arrangements worth a trial, the likely ones first: sessions, batches, feeding threads.

    With one feeder more than CPUs the model waits for no decoder; with twice as many, those that
    wait for the model leave no CPU idle.
    """
    large = [each for each in batches if each >= min(8, batches[-1])]
    return [
        LimitArrangement(instances, 1, batch, feeders)
        for instances in (1, 2)
        for batch in dict.fromkeys([large[-1], large[0], *large])
        for feeders in (2 * cpus, cpus + 1)
    ]


class Instances:
    """Sessions of the served model, as many as were needed so far.

    Args:
        bench: what is measured with.
        opened: closes them.
        max_batch_size: of the largest call.
    """

    def __init__(self, bench: Bench, opened: ExitStack, max_batch_size: int) -> None:
        self._bench = bench
        self._opened = opened
        self._artifact = bench.met(bench.served)
        self._max_batch_size = max_batch_size
        self._sessions: list[OpenSession] = []
        self._pipeline = Pipeline(self._artifact.path, bench.images, PARAMETERS)

    @property
    def metadata(self) -> Metadata:
        """Of the model, with the input shapes that the images have."""
        return self._artifact.metadata

    def session(self, instances: int, batch: int) -> OpenSession:
        """So many sessions as one, each of which has seen that batch in every shape."""
        while len(self._sessions) < instances:
            session = self._bench.session(self._artifact, self._max_batch_size)
            self._sessions.append(self._opened.enter_context(session))
        for each in self._sessions[:instances]:
            each.warm_up([batch])
        return SessionPool(self._sessions[:instances])

    def rate(self, arrangement: LimitArrangement, seconds: float, warm_s: float) -> Window:
        """What passes in a window."""
        session = self.session(arrangement.instances, arrangement.batch)
        rate = self._pipeline.rate_of(session, self.metadata, arrangement, seconds, warm_s)
        return Window(rate.images_per_s, rate.cpu_ms_per_image, 0)

    def window(self, arrangement: LimitArrangement, seconds: float) -> Callable[[], Window]:
        """The same for `turns`; instead of the time of a call it has the CPU's for an image."""
        return lambda: self.rate(arrangement, seconds, WARM_S)


def summary(rounds: Sequence[Round], names: Sequence[str]) -> Figures:
    """A row for each finalist, and the best."""
    rows = [
        {
            "arrangement": name,
            "images_per_s": spread([each[name].images_per_s for each in rounds]),
            "cpu_ms_per_image": spread([each[name].call_ms for each in rounds]),
        }
        for name in names
    ]
    medians = {
        name: statistics.median(each[name].images_per_s for each in rounds) for name in names
    }
    best = max(medians, key=lambda name: medians[name])
    return {"rows": rows, "best": best, "enough": len(rounds) >= AT_LEAST}


def best_known(known: Mapping[str, Any], batches: Sequence[int]) -> LimitArrangement:
    """The arrangement that was found best, or without that a likely one."""
    best = known.get("pipeline", {}).get("best")
    if best is not None:
        return LimitArrangement.parse(best)
    return candidates(batches, available_cpus())[0]


def describe(arrangement: str) -> str:
    """For the tables."""
    each = LimitArrangement.parse(arrangement)
    return f"{each.instances} session(s), batch {each.batch}, {each.feeders} threads"
