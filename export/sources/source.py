"""What is exported: a trained detector, in whichever form it comes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from export.errors import ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from export.sources.class_map import read_class_map
from export.sources.onnx_source import load_onnx
from export.sources.state_dict import load_state_dict_checkpoint


class Source(Protocol):
    """A detector that can be asked for its predictions, and for its network as ONNX.

    Attributes:
        architecture: such as "yolov8n-fla".
        class_names: the name of each class id.
        sha256: of the file, 64 hex digits.
        strides: of the detection levels, in pixels.
        fixed_hw: the only (height, width) in pixels that it takes; None where it takes any
            multiples of the largest stride.
        trained_imgsz: side of the images that it was trained on, pixels; None where that is not
            known.
    """

    @property
    def architecture(self) -> str: ...  # noqa: D102  # the class docstring says what each is
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def strides(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def fixed_hw(self) -> tuple[int, int] | None: ...  # noqa: D102
    @property
    def trained_imgsz(self) -> int | None: ...  # noqa: D102

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs it as it came, neither rewritten nor fused: what an artifact is held against.

        Args:
            x: (1, 3, H, W) RGB in 0..1, letterboxed.

        Returns:
            (4 + classes, A) for A anchor points: centre x, centre y, width, height in input
            pixels, then the scores of the classes, in 0..1.
        """
        ...

    def graph(self, input_hw: tuple[int, int], *, static: bool) -> onnx.ModelProto:
        """The network with an artifact's input and output, in float32, not optimised.

        Args:
            input_hw: largest (height, width) in pixels.
            static: the only one.
        """
        ...


@dataclass(frozen=True)
class Origin:
    """Where a source is and what the file itself does not say.

    Attributes:
        path: the file.
        class_map: YAML that says what unknown classes of a checkpoint are; see `--map`.
        arch: name or YAML of the layers, for a file that holds parameters only.
        names: of the classes, for a file that does not name them.
    """

    path: Path
    class_map: Path | None = None
    arch: str | None = None
    names: tuple[str, ...] = field(default=())


def load_source(origin: Origin) -> Source:
    """Loads a checkpoint, a file of parameters with its layer table, or an ONNX file.

    Raises:
        CheckpointRefused: it is missing, damaged, or asks for what is not loaded.
        ModelUnsupported: it is no detector that an artifact can hold, or an option does not
            go with it.
    """
    if origin.path.suffix.lower() == ".onnx":
        for option, value in (
            ("--map", origin.class_map),
            ("--arch", origin.arch),
            ("--names", origin.names),
        ):
            if value:
                raise ModelUnsupported(
                    f"{option} is for checkpoints, {origin.path} is an ONNX file"
                )
        return load_onnx(origin.path)
    if origin.arch is not None:
        if origin.class_map is not None:
            raise ModelUnsupported("--map is for checkpoints with layers, --arch for those without")
        return load_state_dict_checkpoint(origin.path, origin.arch, origin.names or None)
    if origin.names:
        raise ModelUnsupported("--names goes with --arch: a checkpoint with layers names its own")
    class_map: Mapping[str, str] = read_class_map(origin.class_map) if origin.class_map else {}
    return load_checkpoint(origin.path, class_map)
