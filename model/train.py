"""Training with ultralytics' own trainer, in one or more stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._pytree import tree_map
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from model.registration import architecture, register

Stage = dict[str, Any]  # ultralytics' training arguments: epochs, imgsz, lr0, mosaic, ...


class FLATrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no type information
    """ultralytics' trainer for our architectures, with bfloat16 on CPUs.

    ultralytics mixes precisions on accelerators only. On a CPU with AVX512-BF16 or AMX the
    convolutions are twice as fast in bfloat16 too.
    """

    def __init__(self, overrides: Stage) -> None:
        on_cpu = str(overrides.get("device", "")) == "cpu" or not torch.cuda.is_available()
        self.bfloat16_on_cpu = on_cpu and overrides.get("amp") == "bf16"
        super().__init__(overrides=overrides | ({"amp": False} if on_cpu else {}))
        self.add_callback("on_train_start", FLATrainer.mix_precisions)

    def get_model(
        self,
        cfg: str | dict[str, Any] | None = None,
        weights: torch.nn.Module | None = None,
        verbose: bool = True,
    ) -> DetectionModel:
        """Builds the network from our layer table (by name), or from a checkpoint's own."""
        register()
        table = architecture(Path(cfg).stem) if isinstance(cfg, str) else cfg
        return super().get_model(table, weights, verbose)

    def mix_precisions(self) -> None:
        """Runs the network, not the loss, in bfloat16 from here on.

        Box corners in bfloat16 would be a quarter of a cell off; the losses stay in float32.
        The EMA copy, which is what gets validated and saved, was made before and stays as it is.
        """
        if not self.bfloat16_on_cpu:
            return
        model = unwrap_model(self.model)
        forward = model.forward

        def mixed(x: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(x, dict):  # a batch: the loss, which calls this again with its images
                return forward(x, *args, **kwargs)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = forward(x, *args, **kwargs)
            return tree_map(lambda t: t.float() if isinstance(t, torch.Tensor) else t, outputs)

        model.forward = mixed


def train(
    arch: str,
    data: Path,
    stages: Sequence[Stage],
    output: Path,
    *,
    pretrained: Path | None = None,
    resume: bool = False,
) -> Path:
    """Trains an architecture on a YOLO-form data set.

    Args:
        arch: name as `model.registration.architecture` takes it.
        data: a data set's YAML; its `path` is taken relative to the YAML, not to where we run.
        stages: run in this order, each from the best weights of the one before; stage i writes
            `output/stage_i` with ultralytics' curves, and checkpoints after every epoch.
        output: folder for the run, made if missing.
        pretrained: checkpoint whose matching layers the first stage starts from.
        resume: go on where an interrupted run in `output` stopped.

    Returns:
        The best checkpoint of the last stage, optimizer stripped, weights in float16.

    Raises:
        FileNotFoundError: when the data set or the checkpoint does not exist.
        ValueError: when there is no such architecture.
    """
    register()
    architecture(arch)  # an unknown name fails before anything is written
    output.mkdir(parents=True, exist_ok=True)
    data = with_absolute_paths(data, output / "data.yaml")
    weights = pretrained
    for number, stage in enumerate(stages, 1):
        run = output / f"stage_{number}"
        best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
        if resume and is_finished(last):
            weights = best
            continue
        overrides = {
            **stage,
            "model": f"{arch}.yaml",
            "data": str(data),
            "pretrained": str(weights) if weights else False,
            "project": str(output),
            "name": run.name,
            "exist_ok": True,
        }
        if resume and last.exists():
            overrides |= {"model": str(last), "resume": str(last)}
        LOGGER.info(f"stage {number} of {len(stages)}: {run}")
        FLATrainer(overrides).train()
        weights = best
    if weights is None:
        raise ValueError("no stages to train")
    return weights


def is_finished(last: Path) -> bool:
    """Whether a stage is complete: ultralytics marks its last checkpoint with epoch -1."""
    if not last.exists():
        return False
    return bool(torch.load(last, map_location="cpu", weights_only=False)["epoch"] == -1)


def with_absolute_paths(data: Path, copy: Path) -> Path:
    """Writes the data set's YAML to `copy` with its root made absolute, and returns `copy`.

    ultralytics takes a relative `path` from the working folder, where it only works by luck.
    """
    table = yaml.safe_load(data.read_text())
    table["path"] = str((data.parent / table.get("path", ".")).resolve())
    copy.write_text(yaml.safe_dump(table, sort_keys=False))
    return copy
