"""(a) The raw limit: the session alone, images a second over batch sizes and precisions."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.rounds import AT_LEAST, Contender, Round, contest, rates, ratio, window_s
from server.errors import ServerError
from server.inference.session import Session

VARIANTS = {"plain": False, "CUDA graphs": True}


def measure(bench: Bench) -> Generator[Figures]:
    """Every variant, precision and batch size takes turns with all others."""
    figures: Figures = {"failed": {}}
    with ExitStack() as sessions:
        contenders = prepared(bench, sessions, figures)
        seconds = window_s(bench.deadline, len(contenders))
        figures |= {"window_s": seconds}
        for rounds in contest(contenders, seconds, bench.deadline):
            names = [each.name for each in contenders]
            figures |= summary(rounds, names)
            yield figures


def prepared(bench: Bench, sessions: ExitStack, figures: Figures) -> list[Contender]:
    """Opens every session and runs every batch once; what does not open is noted as failed."""
    contenders: list[Contender] = []
    for variant, graphs in VARIANTS.items():
        if graphs and not bench.on_gpu:
            continue
        for precision in bench.precisions:
            # Half of the time may go into opening; the first variant is opened whatever it takes.
            if graphs and bench.deadline.left_s < bench_half(bench, figures):
                figures["failed"][f"{variant} {precision}"] = "no time to open it"
                continue
            artifact = bench.square(f"fla-{precision}")
            canvases = bench.canvases(artifact, bench.job.batches[-1])
            try:
                session = sessions.enter_context(
                    bench.session(artifact, bench.job.batches[-1], graphs=graphs)
                )
                for batch in reversed(bench.job.batches):
                    session.run(canvases[:batch])
                note_graphs(figures, f"{variant} {precision}", session)
            except ServerError as error:
                figures["failed"][f"{variant} {precision}"] = reason(error)
                continue
            contenders += [
                Contender(
                    name_of(variant, precision, batch),
                    partial(session.run, canvases[:batch]),
                    batch,
                )
                for batch in bench.job.batches
            ]
    return contenders


def note_graphs(figures: Figures, name: str, session: Session) -> None:
    """Notes input shapes that are not replayed from a CUDA graph though they should be."""
    if shapes := [shape for shape, recorded in session.captured.items() if not recorded]:
        figures["failed"][name] = f"runs without CUDA graphs at {shapes}"


def bench_half(bench: Bench, figures: Figures) -> float:
    """Half of the seconds that there were when the first session was to be opened."""
    return float(figures.setdefault("opening_until_s", bench.deadline.left_s / 2))


def name_of(variant: str, precision: str, batch: int) -> str:
    """Of a contender."""
    return f"{variant}, {precision}, batch {batch}"


def parts_of(name: str) -> tuple[str, str, int]:
    """What `name_of` put together."""
    variant, precision, batch = name.split(", ")
    return variant, precision, int(batch.removeprefix("batch "))


def summary(rounds: Sequence[Round], names: Sequence[str]) -> Figures:
    """A row for each contender, and float16 by float32 within a round where both are there."""
    rows, halves = [], []
    for name in names:
        variant, precision, batch = parts_of(name)
        row = {"variant": variant, "precision": precision, "batch": batch}
        rows.append(row | rates(rounds, name))
        single = name_of(variant, "fp32", batch)
        if precision == "fp16" and single in names:
            row = {"variant": variant, "batch": batch}
            halves.append(row | {"ratio": ratio(rounds, name, single)})
    return {"rows": rows, "fp16_to_fp32": halves, "enough": len(rounds) >= AT_LEAST}


def reason(error: Exception) -> str:
    """Why something failed, in a line."""
    return " ".join(f"{error} {error.__cause__ or ''}".split())[:500]
