"""How large an architecture is, beside plain YOLOv8 of the same scale."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from model.registration import architecture, register


def comparison(arch: str, imgsz: int) -> str:
    """A table of layers, parameters and GFLOPs for one image.

    Args:
        arch: name as `model.registration.architecture` takes it.
        imgsz: side of the square input in pixels, a multiple of 32.

    Raises:
        ValueError: when there is no such architecture, or the size is not a multiple of 32.
    """
    if imgsz < 32 or imgsz % 32:
        raise ValueError(f"--imgsz {imgsz} is not a multiple of the stride, 32")
    register()
    table = architecture(arch)
    plain = f"yolov8{table['scale']}"
    rows = [(plain, DetectionModel(yaml_model_load(f"{plain}.yaml"), verbose=False))]
    rows.append((arch, DetectionModel(table, verbose=False)))
    lines = [f"{'':<18}{'layers':>8}{'parameters':>14}{f'GFLOPs at {imgsz}':>16}"]
    for name, model in rows:
        layers = sum(not list(module.children()) for module in model.modules())
        parameters = sum(p.numel() for p in model.parameters())
        lines.append(f"{name:<18}{layers:>8}{parameters:>14,}{gflops(model, imgsz):>16.2f}")
    return "\n".join(lines)


def gflops(model: torch.nn.Module, imgsz: int) -> float:
    """10^9 floating point operations for one (1, 3, imgsz, imgsz) input, two a multiply-add.

    Counted on the operators that run, so the products inside the attention are in it; the
    per-module tables that ultralytics prints leave them out.
    """
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.inference_mode(), counter:
        model(torch.zeros(1, 3, imgsz, imgsz))
    return float(counter.get_total_flops()) / 1e9
