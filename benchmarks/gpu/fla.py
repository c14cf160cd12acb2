"""(d) YOLOv8n with the attention against the same network without it."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.raw import VARIANTS, reason
from benchmarks.gpu.rounds import AT_LEAST, Contender, Round, contest, rates, ratio, window_s
from server.errors import ServerError

BATCHES = (1, 8, 16)
NETWORKS = ("fla", "plain")


def measure(bench: Bench) -> Generator[Figures]:
    """Both networks from one exporter at one input size, precisions and batches in turns.

    The ratio is one of times: how many times as long the network with attention takes.
    """
    figures: Figures = {"failed": {}}
    contenders: list[Contender] = []
    batches = [each for each in BATCHES if each <= bench.job.batches[-1]]
    until_s = bench.deadline.left_s / 2
    with ExitStack() as sessions:
        for variant, graphs in VARIANTS.items():
            if graphs and not bench.on_gpu:
                continue
            for precision in ("fp16", "fp32"):
                if any(f"{each}-{precision}" not in bench.inputs.models for each in NETWORKS):
                    continue
                if graphs and bench.deadline.left_s < until_s:
                    figures["failed"][f"{variant}, {precision}"] = "no time to open it"
                    continue
                try:
                    for network in NETWORKS:
                        artifact = bench.square(f"{network}-{precision}")
                        canvases = bench.canvases(artifact, batches[-1])
                        session = sessions.enter_context(
                            bench.session(artifact, batches[-1], graphs=graphs)
                        )
                        for batch in reversed(batches):
                            session.run(canvases[:batch])
                        contenders += [
                            Contender(
                                f"{network}, {variant}, {precision}, batch {batch}",
                                partial(session.run, canvases[:batch]),
                                batch,
                            )
                            for batch in batches
                        ]
                except ServerError as error:
                    figures["failed"][f"{variant}, {precision}"] = reason(error)
        seconds = window_s(bench.deadline, len(contenders))
        figures |= {"window_s": seconds}
        for rounds in contest(contenders, seconds, bench.deadline):
            figures |= summary(rounds, [each.name for each in contenders])
            yield figures


def summary(rounds: Sequence[Round], names: Sequence[str]) -> Figures:
    """A row for each pair, with the ratio of their times."""
    rows = []
    for name in names:
        network, variant, precision, batch = name.split(", ")
        plain = name.replace("fla, ", "plain, ", 1)
        if network != "fla" or plain not in names:
            continue
        rows.append(
            {
                "variant": variant,
                "precision": precision,
                "batch": int(batch.removeprefix("batch ")),
                "fla": rates(rounds, name),
                "plain": rates(rounds, plain),
                "time_ratio": ratio(rounds, plain, name),
            }
        )
    return {"rows": rows, "enough": bool(rows) and len(rounds) >= AT_LEAST}
