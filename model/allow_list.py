"""The classes that a checkpoint may name; their code is ours or the libraries'."""

from collections.abc import Set
from pickle import UnpicklingError

from torch import nn
from ultralytics.nn.modules import C2f, Concat, Conv, Detect
from ultralytics.nn.modules.block import DFL, SPPF, Bottleneck
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace

from model.attention.table import MECHANISMS

ULTRALYTICS = (DetectionModel, Conv, C2f, Bottleneck, SPPF, Concat, Detect, DFL)
ALLOWED = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity),
    *(nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.Upsample, nn.ModuleList, nn.Sequential),
    *(*ULTRALYTICS, IterableSimpleNamespace),
    *(layer for mechanism in MECHANISMS for layer in mechanism.layers),
)

# People paste these into a copy of ultralytics, under any module path.
TUTORIALS = tuple(name for mechanism in MECHANISMS for name in mechanism.tutorial_names)

# Beside the network, and of no use here: figures and paths that training notes as it ends, and the
# loss in a run that did not come to its end.
IGNORED = (
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32")),
    *("pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("ultralytics.utils.loss.v8DetectionLoss", "ultralytics.utils.loss.BboxLoss"),
    *("ultralytics.utils.loss.DFLoss", "ultralytics.utils.tal.TaskAlignedAssigner"),
    *("ultralytics.yolo.v8.detect.train.Loss", "ultralytics.yolo.utils.loss.BboxLoss"),
    *("ultralytics.yolo.utils.tal.TaskAlignedAssigner", "torch.nn.modules.loss.BCEWithLogitsLoss"),
)


class Ignored:
    """Stands for what is beside the network in a checkpoint: keeps nothing."""

    name = ""

    def __init__(self, *args: object) -> None:
        if args and not self.name.startswith(("numpy.", "pathlib.")):
            raise UnpicklingError(f"calls {self.name}")

    def __setstate__(self, state: object) -> None:
        pass


class ForeignLayer(nn.Module):
    """A layer without its class: parameters, children and attributes, and no code.

    Attributes:
        foreign_name: which of `TUTORIALS` it is; of a layer that is not recognised, the full name
            of its class in the file.
    """

    foreign_name = ""


FOREIGN = {name: type(name, (ForeignLayer,), {"foreign_name": name}) for name in TUTORIALS}


def known_names(named: Set[str] = frozenset()) -> dict[str, type]:
    """The allowed classes by their full names, those of the first YOLOv8 releases included.

    Args:
        named: full names in a file; of these the tutorials' layers are allowed, too.
    """
    known = {f"{kind.__module__}.{kind.__name__}": kind for kind in ALLOWED}
    # Until 8.0.9x all layers were in one module, and the settings in another package; forks of
    # that time are still about.
    known |= {f"ultralytics.nn.modules.{kind.__name__}": kind for kind in ULTRALYTICS[1:]}
    known["ultralytics.yolo.utils.IterableSimpleNamespace"] = IterableSimpleNamespace
    known |= dict.fromkeys(IGNORED, Ignored)
    for mechanism in MECHANISMS:
        known |= {
            f"{module}.{kind.__name__}": kind
            for module in mechanism.former_modules
            for kind in mechanism.layers
        }
    bare = {name: name.rpartition(".")[2] for name in named - known.keys()}
    return known | {name: FOREIGN[last] for name, last in bare.items() if last in FOREIGN}
