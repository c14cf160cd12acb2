"""(a) The raw limit under TensorRT, where its libraries are there."""

from collections.abc import Generator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.raw import name_of, reason, summary
from benchmarks.gpu.rounds import Contender, contest, window_s
from server.errors import ServerError
from server.inference.session import Session

PRECISIONS = ("fp16", "int8", "fp32")  # engines take long to build: the most wanted first


def measure(bench: Bench) -> Generator[Figures]:
    """As `gpu_raw` does, on the TensorRT provider."""
    figures: Figures = {"present": False, "failed": {}}
    if not bench.on_gpu:
        yield figures | {"reason": "not on a CPU", "enough": True}
        return
    contenders: list[Contender] = []
    sessions: list[Session] = []
    half_s = bench.deadline.left_s / 2
    try:
        with TemporaryDirectory(prefix="gpu-engines-") as cache:
            for precision in PRECISIONS:
                if f"fla-{precision}" not in bench.inputs.models or (
                    sessions and bench.deadline.left_s < half_s
                ):
                    continue
                artifact = bench.square(f"fla-{precision}")
                canvases = bench.canvases(artifact, bench.job.batches[-1])
                try:
                    session = Session.open(
                        artifact,
                        device="tensorrt",
                        max_batch_size=bench.job.batches[-1],
                        tensorrt_cache=Path(cache),
                    )
                    session.run(canvases)
                except ServerError as error:
                    figures["failed"][precision] = reason(error)
                    if not sessions:  # none of them will
                        break
                    continue
                sessions.append(session)
                contenders += [
                    Contender(
                        name_of("TensorRT", precision, batch),
                        partial(session.run, canvases[:batch]),
                        batch,
                    )
                    for batch in bench.job.batches
                ]
        if not contenders:
            reasons = "; ".join(figures["failed"].values())
            yield figures | {"reason": reasons or "no model for it", "enough": True}
            return
        figures["present"] = True
        seconds = window_s(bench.deadline, len(contenders))
        for rounds in contest(contenders, seconds, bench.deadline):
            figures |= summary(rounds, [each.name for each in contenders])
            yield figures
    finally:
        for session in sessions:
            session.close()
