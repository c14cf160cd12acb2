"""An ONNX file that ultralytics exported, as a source of artifacts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from export.errors import CheckpointRefused, ModelUnsupported
from export.sources.onnx_file import AGAIN, OnnxFile, read_onnx
from export.sources.onnx_graft import at_served_opset, batch_freed, grafted, has_half, widened
from server.host import available_cpus

# For nine of ten anchor points of a random image. Boxes as a share of the input's longer side.
HALF_BOX_LIMIT, HALF_SCORE_LIMIT = 1e-2, 1e-2
BATCH_BOX_LIMIT_PX, BATCH_SCORE_LIMIT = 1e-2, 1e-4


@dataclass(frozen=True)
class OnnxSource:
    """A plain YOLOv8 as ultralytics exported it: decoded boxes and scores, without NMS.

    Attributes:
        file: what was read, and what it says of itself.
        strides: of the detection levels, in pixels.
        model: its network; one in float16 is widened to float32, so that the roundings of
            float16 are neither in the artifact nor held against it.
        session: of the model, on the CPU.
        architecture, class_names, sha256, fixed_hw: as `OnnxFile` says.
    """

    file: OnnxFile
    strides: tuple[int, ...]
    model: ModelProto = field(repr=False)
    session: Any = field(repr=False)

    @property
    def architecture(self) -> str:  # noqa: D102  # see the class
        return self.file.architecture

    @property
    def class_names(self) -> tuple[str, ...]:  # noqa: D102
        return self.file.class_names

    @property
    def sha256(self) -> str:  # noqa: D102
        return self.file.sha256

    @property
    def fixed_hw(self) -> tuple[int, int] | None:  # noqa: D102
        return self.file.fixed_hw

    @property
    def trained_imgsz(self) -> None:
        """None: the file tells what it was exported for, not what it was trained on."""
        return None

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the file's own graph in ONNX Runtime on the CPU; see `Source`."""
        predictions: NDArray[np.float32] = run(
            self.session, np.repeat(x, self.file.batch or 1, axis=0)
        )[0]
        return predictions

    def graph(self, input_hw: tuple[int, int], *, static: bool) -> ModelProto:
        """The network between other ends; see `Source`.

        Raises:
            ModelUnsupported: it takes no input of that size, its opset cannot be converted, or
                its batch cannot be made free.
        """
        path, batch, fixed_hw = self.file.path, self.file.batch, self.fixed_hw
        if fixed_hw not in (None, input_hw):
            raise ModelUnsupported(
                f"{path}: it takes the input {fixed_hw} only, (height, width), not {input_hw}"
            )
        try:
            served = at_served_opset(self.model)
        except ValueError as error:
            raise ModelUnsupported(f"{path}: {error}: {AGAIN} with opset=17") from error
        if batch is not None:
            served = batch_freed(served, batch)
            if not self.answers_any_batch(served, input_hw):
                raise ModelUnsupported(
                    f"{path}: its batch of {batch} is part of its layers: {AGAIN} with dynamic=True"
                )
        return grafted(served, input_hw if static or fixed_hw else None)

    def answers_any_batch(self, freed: ModelProto, input_hw: tuple[int, int]) -> bool:
        """Whether it answers one image more than before as it answers each of them alone."""
        images = noise((self.file.batch or 1) + 1, input_hw)
        try:
            together = run(open_session(freed), images)
        except Exception:  # ONNX Runtime has no common base of its exceptions
            return False
        alone = np.stack([self.predict(image[None]) for image in images])
        if together.shape != alone.shape:
            return False
        boxes, scores = difference(together, alone)
        return boxes <= BATCH_BOX_LIMIT_PX and scores <= BATCH_SCORE_LIMIT


def load_onnx(path: Path) -> OnnxSource:
    """Loads a file that `YOLO(...).export(format="onnx")` wrote, with no operators of others.

    Raises:
        CheckpointRefused: the file is missing or damaged, or ONNX Runtime cannot run it.
        ModelUnsupported: it is not the detection network of a YOLOv8 and no more than that.
    """
    file = read_onnx(path)
    probe = noise(file.batch or 1, file.fixed_hw or (2 * file.stride, 3 * file.stride))
    predictions, session = first_run(path, file.model, probe)
    rows = 4 + len(file.class_names)
    if predictions.ndim != 3 or predictions.shape[:2] != (len(probe), rows):
        raise ModelUnsupported(
            f"{path}: its output is {predictions.shape}, but ({len(probe)}, {rows}, anchor points) "
            f"is expected of {len(file.class_names)} classes: {AGAIN} without nms and end2end"
        )
    probe_hw = (probe.shape[2], probe.shape[3])
    strides = level_strides(path, file.stride, probe_hw, predictions.shape[2])
    if not has_half(file.model):
        return OnnxSource(file, strides, file.model, session)

    model = widened(file.model)
    wide, session = first_run(path, model, probe)
    boxes, scores = difference(wide, predictions)
    if boxes > HALF_BOX_LIMIT * max(probe_hw) or scores > HALF_SCORE_LIMIT:
        raise ModelUnsupported(
            f"{path}: in float32 its boxes are {boxes:.3g} px and its scores {scores:.3g} away "
            f"from those in float16: {AGAIN} in float32"
        )
    return OnnxSource(file, strides, model, session)


def level_strides(
    path: Path, stride: int, input_hw: tuple[int, int], anchors: int
) -> tuple[int, ...]:
    """The strides of the levels that together have so many anchor points, the smallest first.

    Args:
        path: for messages.
        stride: the largest, in pixels; each level's is half of the next one's.
        input_hw: (height, width) in pixels, multiples of the stride.
        anchors: how many there are at that size.

    Raises:
        ModelUnsupported: no such levels have that many.
    """
    strides: tuple[int, ...] = ()
    left, finer = anchors, stride
    while left > 0 and finer >= 1:
        left -= (input_hw[0] // finer) * (input_hw[1] // finer)
        strides, finer = (finer, *strides), finer // 2
    if left:
        raise ModelUnsupported(
            f"{path}: {anchors} anchor points at {input_hw[0]}x{input_hw[1]} are not those of "
            f"levels up to stride {stride}"
        )
    return strides


def open_session(model: ModelProto) -> Any:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions, and are told in one line
    options.intra_op_num_threads = available_cpus()
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=0,  # to where it is already; and it prints
    )


def run(session: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The only output, as float32, for a session's only input, of either float type."""
    (only,) = session.get_inputs()
    taken = x.astype(np.float16) if only.type == "tensor(float16)" else x
    return np.asarray(session.run(None, {only.name: taken})[0], np.float32)


def first_run(
    path: Path, model: ModelProto, x: NDArray[np.float32]
) -> tuple[NDArray[np.float32], Any]:
    """The answer to `x`, and the session that gave it.

    Raises:
        CheckpointRefused: ONNX Runtime cannot load or run it; the message tells its first line.
    """
    try:
        session = open_session(model)
        return run(session, x), session
    except Exception as error:  # ONNX Runtime has no common base of its exceptions
        reason = str(error).partition("\n")[0]
        raise CheckpointRefused(f"{path}: ONNX Runtime cannot run it: {reason}") from None


def noise(count: int, input_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(count, 3, H, W) random images in 0..1, the same ones every time."""
    return np.random.default_rng(0).random((count, 3, *input_hw), dtype=np.float32)


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, float]:
    """What nine of ten box sides, in pixels, and scores of (B, 4 + classes, A) stay within.

    Not all of them: noise is no image, and a network may answer it with great steps. Infinite
    where a number is not finite.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf"), float("inf")
    apart = np.abs(a - b)
    return float(np.quantile(apart[:, :4], 0.9)), float(np.quantile(apart[:, 4:], 0.9))
