"""Makes an artifact: load, convert, optimise, reduce precision, certify, stamp."""

import errno
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
import ultralytics
from numpy.typing import NDArray

from export.buckets import buckets
from export.candidates import MAX_CANDIDATES
from export.errors import DatasetInvalid, ModelUnsupported, OutputExists
from export.optimize import optimize
from export.precision.half import to_half
from export.precision.quantize import quantize
from export.sources.source import Origin, Source, load_source
from export.stamp import stamp, write
from export.verification.certify import DRAFT, Material, certify, gather, judge
from export.verification.images import calibration_canvases, describe_split
from export.verification.latency import measure_latency
from export.verification.verify import verify
from model.registration import register
from server.inference.artifact import SCHEMA_VERSION, Artifact, Metadata, graph_sha256
from server.inference.certificate import Precision

DEFAULT_IMGSZ = 640
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        origin: what to export.
        output: where the artifact goes.
        imgsz: the input's longer side in pixels, a multiple of the model's stride; None takes
            640, or the size that an ONNX file was made for.
        precision: of the convolutions.
        data: a data set's YAML to compare and to measure accuracy on, or a folder of images
            to compare on; None generates images.
        calibration: folder of images, or a data set's YAML, that int8 takes its ranges from;
            None takes the training images of `data`.
        accept_loss: write a reduced precision even where it loses more accuracy than its tolerance,
            or where there are no labels to tell.
        name: the model's name in answers; None takes the output's file name.
        static: one input shape, the square.
        force: an existing output is replaced.
    """

    origin: Origin
    output: Path
    imgsz: int | None = None
    precision: Precision = "fp32"
    data: Path | None = None
    calibration: Path | None = None
    accept_loss: bool = False
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
    refuse_at_once(request)
    register()
    step = Steps(report)

    source = load_source(request.origin)
    shapes, static = input_shapes(request, source)
    material = gather(request.data, source.class_names)
    step(f"load {source.architecture}, {len(source.class_names)} classes")
    if source.trained_imgsz not in (None, max(shapes[0])):
        report(
            f"  note:   it was trained with --imgsz {source.trained_imgsz}, this file is for "
            f"{max(shapes[0])}: much smaller or larger objects than in training are missed"
        )

    graph = source.graph(shapes[0], static=static)
    step("rewrite and convert to ONNX")

    graph = optimize(graph)
    metadata = describe(request, source, graph, shapes, static)
    step(f"optimise to {len(graph.graph.node)} nodes")
    canvases, calibrated_on = calibration_of(request, material, metadata)

    with tempfile.TemporaryDirectory() as folder:
        fp32 = artifact = draft(graph, metadata, Path(folder) / "fp32.onnx")
        if request.precision != "fp32":
            # That a reduced precision differs by nothing else is shown first.
            verify(fp32, source, material.images, material.description, step)
            half = request.precision == "fp16"
            graph = to_half(graph) if half else quantize(graph, canvases)
            metadata = metadata.model_copy(
                update={"precision": request.precision, "graph_sha256": digest(graph)}
            )
            artifact = draft(graph, metadata, Path(folder) / "reduced.onnx")
            step(f"reduce to {request.precision}")

        certificate = certify(
            artifact, source, material, accept_loss=request.accept_loss, report=step
        )
        latency = measure_latency(artifact, fp32)
        step("measure latency")

    certificate = certificate.model_copy(update={"latency": latency, "calibration": calibrated_on})
    metadata = metadata.model_copy(update={"certificate": certificate})
    artifact = stamp(graph, metadata, request.output, force=request.force)
    step(f"stamp {request.output}")
    return artifact


def refuse_at_once(request: Request) -> None:
    """Raises what would be raised only after minutes of work."""
    if request.output.is_dir():
        raise OutputExists(f"{request.output} is a folder; the artifact is a file")
    if request.output.resolve() == request.origin.path.resolve():
        raise OutputExists(f"{request.output} is the source; the artifact is another file")
    if request.output.suffix != ".onnx":
        raise ModelUnsupported(f"-o {request.output}: the name of an artifact ends in .onnx")
    if os.path.lexists(request.output) and not request.force:
        raise OutputExists(f"{request.output}: there is a file already; --force replaces it")
    folder = next(parent for parent in request.output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise OutputExists(f"{request.output}: {folder} is a file; the artifact needs a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    if request.calibration is not None and request.precision != "int8":
        raise ModelUnsupported(f"--calibration is for int8, not for {request.precision}")
    if request.precision == "fp32":
        return
    if request.data is None or request.data.is_dir():
        judge(request.precision, None, request.accept_loss)
    if request.precision == "int8" and (request.calibration or request.data) is None:
        raise DatasetInvalid(
            "int8 takes the ranges of its numbers from images: give --calibration FOLDER, or "
            "--data DATA.yaml for its training images"
        )


def input_shapes(request: Request, source: Source) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The buckets, the largest first, and whether the first is the only one.

    Raises:
        ModelUnsupported: the size is no multiple of the stride, or not the source's only one.
    """
    if source.fixed_hw is None:
        imgsz = DEFAULT_IMGSZ if request.imgsz is None else request.imgsz
        shapes = buckets(imgsz, max(source.strides))
        return (shapes[:1], True) if request.static else (shapes, False)
    if request.imgsz not in (None, max(source.fixed_hw)):
        raise ModelUnsupported(
            f"--imgsz {request.imgsz}: {request.origin.path} takes {source.fixed_hw[0]}x"
            f"{source.fixed_hw[1]} only, as it was exported; leave --imgsz out"
        )
    return (source.fixed_hw,), True


def calibration_of(
    request: Request, material: Material, metadata: Metadata
) -> tuple[list[NDArray[np.uint8]], str | None]:
    """What int8 takes its ranges from, as `calibration_canvases` gives it, and in words."""
    images = request.calibration or request.data
    if request.precision != "int8" or images is None:
        return [], None
    # Ranges from the images that accuracy is measured on would flatter it.
    measured = (
        [] if material.labelled is None else [image.path for image in material.labelled.images]
    )
    canvases = calibration_canvases(images, "train", metadata, CALIBRATION_IMAGES, without=measured)
    return canvases, f"{len(canvases)} images of {describe_split(images, 'train')}"


def draft(graph: onnx.ModelProto, metadata: Metadata, path: Path) -> Artifact:
    """Writes an artifact that is still to be verified."""
    write(graph, metadata, path)
    return Artifact(path, metadata, version="draft")


def describe(
    request: Request,
    source: Source,
    graph: onnx.ModelProto,
    shapes: tuple[tuple[int, int], ...],
    static: bool,
) -> Metadata:
    """The description of an artifact in float32, with no certificate yet."""
    return Metadata(
        schema_version=SCHEMA_VERSION,
        name=request.name or request.output.stem,
        architecture=source.architecture,
        class_names=source.class_names,
        input_hw=shapes[0],
        stride=max(source.strides),
        buckets=shapes,
        static=static,
        max_candidates=MAX_CANDIDATES,
        strides=source.strides,
        precision="fp32",
        opset=next(
            opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")
        ),
        source_sha256=source.sha256,
        graph_sha256=digest(graph),
        tools={
            # Not asked of the installed distributions: onnxruntime has several names.
            module.__name__: module.__version__
            for module in (torch, ultralytics, onnx, onnxslim, onnxruntime)
        },
        certificate=DRAFT,
    )


def digest(graph: onnx.ModelProto) -> str:
    """The hash that the description holds the graph to."""
    return graph_sha256(graph.SerializeToString(deterministic=True))


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
