"""(a) What each CUDA option is worth: one at a time against what it changes, in turns."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.raw import note_graphs, reason
from benchmarks.gpu.rounds import AT_LEAST, Contender, Round, contest, rates, ratio, window_s
from server.errors import ServerError

DEFAULT = "plain"
BATCHES = (1, 16)
OPENING = 0.6  # of the time may go into opening sessions


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a session.

    Attributes:
        name: for the tables.
        changes: options of the CUDA provider.
        graphs: replays CUDA graphs; such a choice is compared with these alone.
        precisions: that it can matter for.
    """

    name: str
    changes: Mapping[str, str] = field(default_factory=dict)
    graphs: bool = False
    precisions: tuple[str, ...] = ("fp16", "fp32")

    @property
    def against(self) -> str:
        """The choice that it is compared with."""
        return GRAPHS if self.graphs and self.changes else DEFAULT


GRAPHS = "CUDA graphs"
CHOICES = (
    Choice(DEFAULT),
    Choice(GRAPHS, graphs=True),
    Choice("NHWC, CUDA graphs", {"prefer_nhwc": "1"}, graphs=True),
    Choice("conv search EXHAUSTIVE", {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
    Choice("TF32", {"use_tf32": "1"}, precisions=("fp32",)),
    Choice("fused conv and bias", {"fuse_conv_bias": "1"}),
    Choice("arena by powers of two", {"arena_extend_strategy": "kNextPowerOfTwo"}),
    Choice("little conv workspace", {"cudnn_conv_use_max_workspace": "0"}),
)


def measure(bench: Bench) -> Generator[Figures]:
    """Every choice that opens, at the smallest and at a large batch, takes turns with the rest."""
    figures: Figures = {"failed": {}}
    choices = CHOICES if bench.on_gpu else CHOICES[:2]  # a CPU has no such options
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
                    session = sessions.enter_context(
                        bench.session(
                            artifact, batches[-1], graphs=choice.graphs, changes=choice.changes
                        )
                    )
                    for batch in reversed(batches):
                        session.run(canvases[:batch])
                    note_graphs(figures, name, session)
                except ServerError as error:
                    figures["failed"][name] = reason(error)
                    continue
                opened |= {f"{name}, batch {batch}": choice for batch in batches}
                contenders += [
                    Contender(
                        f"{name}, batch {batch}", partial(session.run, canvases[:batch]), batch
                    )
                    for batch in batches
                ]
        seconds = window_s(bench.deadline, len(contenders))
        figures |= {"window_s": seconds}
        for rounds in contest(contenders, seconds, bench.deadline):
            figures |= summary(rounds, opened)
            yield figures


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
