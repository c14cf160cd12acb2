"""The model: its files, the choice among them, and where the chosen one really runs."""

import contextlib
import io
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from server.doctor.gpu_facts import Build
from server.doctor.report import Check, Mark
from server.errors import DeploymentError, ProviderUnavailable
from server.host import available_cpus
from server.inference.artifact import Artifact
from server.inference.devices import CPU, TENSORRT, devices_to_try
from server.inference.engine import Engine
from server.inference.repository import load_model
from server.inference.session import Session
from server.settings import Settings
from server.vision.letterbox import PAD_VALUE

SECTION = "Model"
TIMED_RUNS = 10


def check_model(settings: Settings, build: Build, *, gpu_visible: bool) -> Iterator[Check]:
    """Does what the server does at its start, on the devices that it would try.

    Args:
        settings: of the server.
        build: of ONNX Runtime.
        gpu_visible: the system shows a GPU, usable or not.
    """
    try:
        artifacts = load_model(settings.model)
    except DeploymentError as error:
        yield Check(SECTION, "files", "fail", str(error))
        return
    for artifact in artifacts:
        yield Check(SECTION, artifact.metadata.precision, "ok", _described(artifact))
    names = sorted({artifact.metadata.name for artifact in artifacts})
    if len(names) > 1:
        text = f"the files call it {', '.join(names)}: clients see the name of the chosen one"
        yield Check(SECTION, "name", "warn", text, ("export all of them with the same --name",))
    if build.problem:
        yield Check(SECTION, "session", "fail", "can't be opened without ONNX Runtime")
        return
    for device in devices_to_try(settings.device):
        if device != "cpu" and settings.device == "auto" and not gpu_visible:
            yield Check(SECTION, device, "info", "not used: there is no GPU")
            continue
        started = time.perf_counter()
        try:
            engine = _open(settings, artifacts, device)
        except ProviderUnavailable as error:
            mark: Mark = "warn" if settings.device == "auto" else "fail"
            yield Check(SECTION, device, mark, f"does not run: {error}")
        except DeploymentError as error:
            yield Check(SECTION, device, "fail", str(error))
            return
        else:
            yield from _running(engine, time.perf_counter() - started, settings)
            return


def _open(settings: Settings, artifacts: Sequence[Artifact], device: str) -> Engine:
    # ONNX Runtime prints which libraries it misses; `check_gpu` says that better.
    with contextlib.redirect_stdout(io.StringIO()):
        engine = Engine.open(
            artifacts,
            device=device,
            precision=settings.precision,
            intra_op_threads=settings.intra_op_threads,
            max_batch_size=settings.max_batch_size,
            cuda_graphs=settings.cuda_graphs,
            tensorrt_cache=settings.tensorrt_cache,
        )
        engine.warm_up()
    return engine


def _described(artifact: Artifact) -> str:
    certificate = artifact.metadata.certificate
    verdict, size = certificate.verdict.replace("_", " "), artifact.path.stat().st_size / 2**20
    text = f"{artifact.path}, {size:.1f} MiB, version {artifact.version}, {verdict}"
    accuracy = certificate.accuracy
    if accuracy is None:
        return text
    return (
        f"{text}, mAP50-95 {accuracy.artifact_map50_95:.4f} "
        f"(its source: {accuracy.source_map50_95:.4f})"
    )


def _running(engine: Engine, load_s: float, settings: Settings) -> Iterator[Check]:
    """What is to be said of a loaded model."""
    threads = settings.intra_op_threads
    chosen = engine.artifact.metadata
    if chosen.certificate.verdict == "loss_accepted":
        fixes = ("export it again with --data, without --accept-loss",)
        yield Check(SECTION, "chosen", "warn", engine.reason, fixes)
    else:
        yield Check(SECTION, "chosen", "ok", engine.reason)
    text = f"{engine.provider} on {engine.device}, ready after {load_s:.1f} s"
    yield Check(SECTION, "runs on", "ok", text)
    text = f"{engine.instances} side by side, batches of up to {engine.max_batch_size}"
    if engine.provider == CPU:
        all_threads = threads or available_cpus()
        text += f"; CPU threads: {threads or 1} for each, {all_threads} for a sole request"
    yield Check(SECTION, "inferences", "info", text)
    device = "tensorrt" if engine.provider == TENSORRT else engine.device
    nodes = Session.open(
        engine.artifact,
        device=device,
        threads=1,
        max_batch_size=engine.max_batch_size,
        cuda_graphs=settings.cuda_graphs,
        tensorrt_cache=settings.tensorrt_cache,
    ).nodes
    text = ", ".join(f"{len(each)} on {provider}" for provider, each in nodes.items())
    yield Check(SECTION, "nodes", "info", text)
    if engine.provider != CPU and CPU in nodes:
        counts = Counter(node.operator for node in nodes[CPU]).most_common()
        text = ", ".join(f"{count} {operator}" for operator, count in counts)
        yield Check(SECTION, "nodes on the CPU", "info", f"none that costs time: {text}")
    height, width = max(chosen.buckets)
    grey = np.full((1, height, width, 3), PAD_VALUE, np.uint8)
    times_ms = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        engine.run(grey, sole=True)
        times_ms.append((time.perf_counter() - started) * 1000)
    text = (
        f"{statistics.median(times_ms):.1f} ms for one image of {width}x{height} (width x height)"
    )
    yield Check(SECTION, "one alone", "info", f"{text}, median of {TIMED_RUNS} inferences")
