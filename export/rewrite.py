"""The same network in operators that ONNX Runtime runs fast, trained weights folded in.

What is exchanged changes the form and not the outputs (to float32 rounding).
"""

from copy import deepcopy

from ultralytics.nn.tasks import DetectionModel

from export.attention.table import MECHANISMS
from model.registration import in_place_of


def rewrite(model: DetectionModel) -> DetectionModel:
    """A float32 copy for inference: attention rewritten, batch norms fused into convolutions.

    Args:
        model: a trained detector; it is not changed.
    """
    model = deepcopy(model).float().eval()
    export_forms = {mechanism.module: mechanism.export_form for mechanism in MECHANISMS}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if export_form := export_forms.get(type(child)):
                ours = export_form(child)
                # Some networks have the attention as a layer of its own.
                setattr(parent, name, in_place_of(child, ours) if hasattr(child, "f") else ours)
    return model.fuse(verbose=False)
