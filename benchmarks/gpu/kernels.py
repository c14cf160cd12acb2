"""(e) Where a call's time goes: the profiler's times, added up by operator and provider.

This part runs with CUDA_LAUNCH_BLOCKING=1: ONNX Runtime's wheel has no profiler of kernels, and
without that setting a node's time is what it takes to hand its work to the GPU. So a node's time
here is its kernels' and their launch, some microseconds each: at small batches it says more of
launches than of kernels, and the sum is more than a call takes in use.
"""

import json
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.raw import reason
from server.host import available_cpus
from server.inference.cuda.options import cuda_providers
from server.inference.devices import CPU, CUDA
from server.inference.onnx_session import session_options
from server.ort import onnxruntime

BATCHES = (16, 1)
WARM, RUNS = 3, 20
Event = Mapping[str, Any]


def measure(bench: Bench) -> Generator[Figures]:
    """Each precision and batch, with all shapes in one session and with the shape fixed."""
    figures: Figures = {"rows": [], "failed": {}, "enough": False}
    batches = [each for each in BATCHES if each <= bench.job.batches[-1]]
    for batch in batches:
        for precision in [each for each in ("fp16", "fp32") if each in bench.precisions]:
            for fixed in (True, False) if bench.on_gpu else (True,):
                name = f"{precision}, batch {batch}, {'fixed' if fixed else 'any'} shape"
                try:
                    events = profiled(bench, precision, batch, fixed=fixed)
                except Exception as error:  # ONNX Runtime's have no common base
                    figures["failed"][name] = reason(error)
                    continue
                row = {"precision": precision, "batch": batch, "fixed": fixed}
                figures["rows"].append(row | summed(events, skip=WARM))
                yield figures
    yield figures | {"enough": True}


def profiled(bench: Bench, precision: str, batch: int, *, fixed: bool) -> list[Event]:
    """What ONNX Runtime's profiler noted of some calls of the model with attention."""
    ort = onnxruntime()
    artifact = bench.square(f"fla-{precision}")
    canvases = bench.canvases(artifact, batch)
    providers: Any = [CPU]
    if bench.on_gpu:
        ort.preload_dlls(directory="")
        gpu = int(bench.job.device.partition(":")[2] or 0)
        providers = cuda_providers(gpu, changes=bench.job.cuda)
    with TemporaryDirectory(prefix="gpu-profile-") as folder:
        options = session_options(1 if bench.on_gpu else available_cpus())
        if fixed:
            free = ort.InferenceSession(str(artifact.path), session_options(1), providers=[CPU])
            for name, size in zip(free.get_inputs()[0].shape, canvases.shape, strict=True):
                if isinstance(name, str):
                    options.add_free_dimension_override_by_name(name, size)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(artifact.path), options, providers=providers)
        for _ in range(WARM + (RUNS if bench.on_gpu else 2)):
            session.run(None, {"images": canvases})
        events: list[Event] = json.loads(Path(session.end_profiling()).read_text())
    if bench.on_gpu and session.get_providers()[0] != CUDA:
        raise RuntimeError(f"runs on {session.get_providers()}")
    return events


def summed(events: Sequence[Event], *, skip: int) -> dict[str, Any]:
    """Adds the times of nodes up by operator and provider.

    Args:
        events: of the profiler. Kernels count where it noted some, else nodes.
        skip: so many calls at the beginning do not count.

    Returns:
        `runs`; `call_ms`, a call's time on average; `of`, "kernels" or "nodes"; `nodes_ms`, the
        sum of theirs for a call; `operators`, the most expensive first, each with `operator`,
        `provider`, `nodes` and `ms` of a call, `share` of `nodes_ms`.

    Raises:
        ValueError: there are no more calls than are skipped, or none of them ran a node.
    """
    calls = sorted(
        (each for each in events if each.get("name") == "model_run"), key=lambda each: each["ts"]
    )
    if len(calls) <= skip:
        raise ValueError(f"{len(calls)} calls in the profile, {skip} of them to skip")
    counted, begin = calls[skip:], calls[skip]["ts"]
    later = [each for each in events if each.get("ts", -1) >= begin and "dur" in each]
    nodes = [
        each
        for each in later
        if each.get("cat") == "Node" and str(each["name"]).endswith("_kernel_time")
    ]
    kernels = [each for each in later if each.get("cat") == "Kernel"]
    provider_of = {each["args"]["op_name"]: each["args"].get("provider", "") for each in nodes}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in kernels or nodes:
        operator = each["args"].get("op_name", "?")
        provider = each["args"].get("provider") or provider_of.get(operator, "")
        times[operator, provider].append(each["dur"])
    total = sum(sum(each) for each in times.values())
    if not total:
        raise ValueError("no node took any time")
    runs = len(counted)
    return {
        "runs": runs,
        "call_ms": sum(each["dur"] for each in counted) / runs / 1e3,
        "of": "kernels" if kernels else "nodes",
        "nodes_ms": total / runs / 1e3,
        "operators": [
            {
                "operator": operator,
                "provider": provider.removesuffix("ExecutionProvider"),
                "nodes": len(durations) / runs,
                "ms": sum(durations) / runs / 1e3,
                "share": sum(durations) / total,
            }
            for (operator, provider), durations in sorted(
                times.items(), key=lambda item: -sum(item[1])
            )
        ],
    }
