"""(d) The exported attention block against the plain trace of the published form."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.manifest import BlockFile
from benchmarks.gpu.raw import reason
from benchmarks.gpu.rounds import AT_LEAST, Contender, Round, contest, rates, ratio, window_s
from server.host import available_cpus
from server.inference.cuda.options import cuda_providers
from server.inference.devices import CPU
from server.inference.onnx_session import session_options
from server.ort import onnxruntime

GRAPHS = (False, True)  # launched one by one, and as one CUDA graph


def measure(bench: Bench) -> Generator[Figures]:
    """Both forms of every size and precision in turns, inputs and outputs on the device."""
    figures: Figures = {"failed": {}, "outputs": []}
    contenders: list[Contender] = []
    pairs: dict[str, BlockFile] = {}
    for graphs in GRAPHS if bench.on_gpu else GRAPHS[:1]:
        for block in bench.inputs.blocks:
            name = name_of(block, graphs=graphs)
            try:
                call, finite = opened(bench, block, graphs=graphs)
            except Exception as error:  # ONNX Runtime has no common base of its own
                figures["failed"][name] = reason(error)
                continue
            if not finite:
                figures["outputs"].append(f"{name}: NaN or Inf in it")
            contenders.append(Contender(name, call, block.batch))
            pairs[name] = block
    seconds = window_s(bench.deadline, len(contenders))
    figures |= {"window_s": seconds}
    for rounds in contest(contenders, seconds, bench.deadline):
        figures |= summary(rounds, pairs)
        yield figures


def opened(bench: Bench, block: BlockFile, *, graphs: bool) -> tuple[Callable[[], object], bool]:
    """A call of a block that returns when it is done; and whether its output is finite."""
    ort = onnxruntime()
    side = int(block.tokens**0.5)
    kind = np.float16 if block.precision == "fp16" else np.float32
    # Values as behind a batch normalisation, which float16 holds.
    x = np.random.default_rng(0).standard_normal((block.batch, block.channels, side, side))
    if not bench.on_gpu:
        options = session_options(available_cpus())
        session = ort.InferenceSession(str(bench.inputs.path(block)), options, providers=[CPU])
        feeds = {"x": x.astype(kind)}
        (y,) = session.run(None, feeds)
        return (lambda: session.run(None, feeds)), bool(np.isfinite(y).all())
    gpu = int(bench.job.device.partition(":")[2] or 0)
    ort.preload_dlls(directory="")
    providers = cuda_providers(gpu, graphs=graphs, changes=bench.job.cuda)
    session = ort.InferenceSession(
        str(bench.inputs.path(block)), session_options(1), providers=providers
    )
    if session.get_providers()[0] != providers[0][0]:
        raise RuntimeError(f"runs on {session.get_providers()}")
    binding: Any = session.io_binding()
    given = ort.OrtValue.ortvalue_from_numpy(x.astype(kind), "cuda", gpu)
    taken = ort.OrtValue.ortvalue_from_shape_and_type(x.shape, kind, "cuda", gpu)
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, taken)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    for _ in range(3):
        call()
    return call, bool(np.isfinite(taken.numpy()).all())


def name_of(block: BlockFile, *, graphs: bool) -> str:
    """Of a contender."""
    size = f"{block.tokens} x {block.channels}"
    kind = "CUDA graph" if graphs else "kernels"
    return f"{block.form}, {block.precision}, batch {block.batch}, {size}, {kind}"


def summary(rounds: Sequence[Round], blocks: dict[str, BlockFile]) -> Figures:
    """A row for each pair; the ratio is one of times, ours by the published form's."""
    rows = []
    for name, block in blocks.items():
        other = name.replace("ours, ", "published, ", 1)
        if block.form != "ours" or other not in blocks:
            continue
        rows.append(
            {
                "precision": block.precision,
                "batch": block.batch,
                "tokens": block.tokens,
                "channels": block.channels,
                "graph": name.endswith("CUDA graph"),
                "ours": rates(rounds, name),
                "published": rates(rounds, other),
                "time_ratio": ratio(rounds, other, name),
            }
        )
    return {"rows": rows, "enough": bool(rows) and len(rounds) >= AT_LEAST}
