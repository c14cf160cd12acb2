"""The story of an artifact: load, rewrite, convert, optimise, verify, stamp."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import onnxslim
import torch
import ultralytics

from export.buckets import buckets
from export.candidates import MAX_CANDIDATES, Candidates
from export.checkpoint import Checkpoint, load_checkpoint
from export.convert import OPSET, convert
from export.errors import OutputExists
from export.optimize import optimize
from export.pictures import pictures
from export.rewrite import rewrite
from export.stamp import stamp, write
from export.verify import UNVERIFIED, verify
from model.registration import register
from server.artifact import SCHEMA_VERSION, Artifact, Metadata, graph_sha256


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        source: the checkpoint.
        output: where the artifact goes.
        imgsz: the input's longer side in pixels, a multiple of the model's stride.
        data: folder of pictures to verify with; None generates some.
        name: the model's name in answers; None takes the output's file name.
        static: one input shape, the square.
        force: an existing output is replaced.
    """

    source: Path
    output: Path
    imgsz: int = 640
    data: Path | None = None
    name: str | None = None
    static: bool = False
    force: bool = False


def export(request: Request, report: Callable[[str], None] = lambda _: None) -> Artifact:
    """Makes and verifies an artifact.

    Args:
        request: what to make.
        report: is told of each step as it ends, with the seconds it took.

    Returns:
        The artifact as the server will load it.

    Raises:
        ExportError: one of `export.errors`, or
        ServerError: the serving code could not load or run the artifact; in either case the
            output is as it was before.
    """
    if request.output.exists() and not request.force:
        raise OutputExists(f"{request.output}: there is a file already; --force replaces it")
    register()
    step = Steps(report)

    checkpoint = load_checkpoint(request.source)
    images, description = pictures(request.data)
    shapes = buckets(request.imgsz, int(checkpoint.model.stride.max()))
    shapes = shapes[:1] if request.static else shapes
    step(f"load {checkpoint.architecture}, {len(checkpoint.class_names)} classes")

    rewritten = rewrite(checkpoint.model)
    step("rewrite")

    graph = convert(Candidates(rewritten), shapes[0], static=request.static)
    step(f"convert to ONNX, opset {OPSET}")

    graph = optimize(graph)
    step(f"optimise to {len(graph.graph.node)} nodes")

    metadata = describe(request, checkpoint, graph, shapes)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        write(graph, metadata, draft)
        unverified = Artifact(draft, metadata, version="draft")
        certificate = verify(unverified, checkpoint.model, images, description, step)

    metadata = metadata.model_copy(update={"certificate": certificate})
    artifact = stamp(graph, metadata, request.output, force=request.force)
    step(f"stamp {request.output}")
    return artifact


def describe(
    request: Request,
    checkpoint: Checkpoint,
    graph: onnx.ModelProto,
    shapes: tuple[tuple[int, int], ...],
) -> Metadata:
    """The artifact's description, with no certificate yet."""
    strides = tuple(int(stride) for stride in checkpoint.model.stride)
    return Metadata(
        schema_version=SCHEMA_VERSION,
        name=request.name or request.output.stem,
        architecture=checkpoint.architecture,
        class_names=checkpoint.class_names,
        input_hw=shapes[0],
        stride=max(strides),
        buckets=shapes,
        static=request.static,
        max_candidates=MAX_CANDIDATES,
        strides=strides,
        precision="fp32",
        opset=next(
            opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")
        ),
        source_sha256=checkpoint.sha256,
        graph_sha256=graph_sha256(graph.SerializeToString(deterministic=True)),
        tools={
            # Not asked of the installed distributions: onnxruntime has several names.
            module.__name__: module.__version__
            for module in (torch, ultralytics, onnx, onnxslim, onnxruntime)
        },
        certificate=UNVERIFIED,
    )


class Steps:
    """Reports each step with the time since the one before."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._started = time.perf_counter()

    def __call__(self, step: str) -> None:
        """Tells that a step ended now."""
        now = time.perf_counter()
        self._report(f"{now - self._started:6.1f} s  {step}")
        self._started = now
