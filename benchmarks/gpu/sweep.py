"""(a) What each CUDA option is worth: one at a time against what it changes, in turns."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.raw import note_graphs, reason
from benchmarks.gpu.rounds import AT_LEAST, Contender, Round, contest, rates, ratio, window_s
from server.errors import ServerError
from server.inference.session import Session

DEFAULT = "as told"
BATCHES = (1, 16)
OPENING = 0.6  # of the time may go into opening sessions


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a session.

    Attributes:
        name: for the tables.
        changes: of the job's CUDA options.
        against: the choice that it is compared with.
        precisions: that it can matter for.
        sessions: side by side, each called by a thread of its own.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str = DEFAULT
    precisions: tuple[str, ...] = ("fp16", "fp32")
    sessions: int = 1


ALL = {"calls": "captured", "conv_search": "EXHAUSTIVE", "prefer_nhwc": True}
CHOICES = (
    Choice(DEFAULT),
    Choice("IO binding", {"calls": "bound"}),
    Choice("fixed shapes", {"calls": "fixed"}),
    Choice("CUDA graphs", {"calls": "captured"}),
    Choice("conv search EXHAUSTIVE", {"conv_search": "EXHAUSTIVE"}),
    Choice("NHWC, fixed shapes", {"calls": "fixed", "prefer_nhwc": True}, "fixed shapes"),
    Choice("all of these", ALL),
    Choice("2 sessions", {}, sessions=2),
    Choice("2 sessions, CUDA graphs", {"calls": "captured"}, "CUDA graphs", sessions=2),
    Choice("TF32", {"tf32": True}, precisions=("fp32",)),
    Choice("fused conv and bias", {"fuse_conv_bias": True}),
    Choice("arena by powers of two", {"arena": "kNextPowerOfTwo"}),
    Choice("little conv workspace", {"conv_max_workspace": False}),
)


def measure(bench: Bench) -> Generator[Figures]:
    """Every choice that opens, at the smallest and at a large batch, takes turns with the rest."""
    figures: Figures = {"failed": {}}
    if not bench.on_gpu:  # whose options are others: two contenders try the script
        choices: Sequence[Choice] = [Choice(DEFAULT), Choice("2 sessions", {}, sessions=2)]
    else:
        choices = CHOICES
    batches = sorted({each for each in BATCHES if each <= bench.job.batches[-1]})
    opened: dict[str, Choice] = {}
    contenders: list[Contender] = []
    until_s = bench.deadline.left_s * (1 - OPENING)
    with ExitStack() as sessions:
        for precision in [each for each in ("fp16", "fp32") if each in bench.precisions]:
            artifact = bench.square(f"fla-{precision}")
            canvases = bench.canvases(artifact, batches[-1])
            for choice in choices:
                name = f"{choice.name}, {precision}"
                if precision not in choice.precisions:
                    continue
                if choice.name != DEFAULT and bench.deadline.left_s < until_s:
                    figures["failed"][name] = "no time to open it"
                    continue
                try:
                    own = [
                        sessions.enter_context(bench.session(artifact, batches[-1], choice.changes))
                        for _ in range(choice.sessions)
                    ]
                    for session in own:
                        for batch in reversed(batches):
                            session.run(canvases[:batch])
                        note_graphs(figures, name, session)
                except ServerError as error:
                    figures["failed"][name] = reason(error)
                    continue
                opened |= {f"{name}, batch {batch}": choice for batch in batches}
                contenders += [
                    Contender(
                        f"{name}, batch {batch}",
                        shared(own, canvases[:batch]),
                        batch,
                        callers=choice.sessions,
                    )
                    for batch in batches
                ]
        seconds = window_s(bench.deadline, len(contenders))
        figures |= {"window_s": seconds}
        for rounds in contest(contenders, seconds, bench.deadline):
            figures |= summary(rounds, opened)
            yield figures


class shared:  # noqa: N801  # a function with a queue
    """A call on whichever of some sessions is idle."""

    def __init__(self, sessions: Sequence[Session], images: NDArray[np.uint8]) -> None:
        self._idle: SimpleQueue[Session] = SimpleQueue()
        self._images = images
        for session in sessions:
            self._idle.put(session)

    def __call__(self) -> None:
        """Runs the images."""
        session = self._idle.get()
        try:
            session.run(self._images)
        finally:
            self._idle.put(session)


def summary(rounds: Sequence[Round], opened: Mapping[str, Choice]) -> Figures:
    """A row for each choice, precision and batch, with its ratio to what it is compared with."""
    rows = []
    for name, choice in opened.items():
        other = choice.against + name[len(choice.name) :]
        same = other == name or other not in opened
        rows.append(
            {"name": name, "against": None if same else other}
            | rates(rounds, name)
            | {"ratio": None if same else ratio(rounds, name, other)}
        )
    return {"rows": rows, "enough": len(rounds) >= AT_LEAST}
