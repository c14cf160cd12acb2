"""Training with ultralytics' own trainer, in one or more stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._pytree import tree_map
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from model.registration import architecture, register
from model.strip import strip

Stage = dict[str, Any]  # ultralytics' training arguments: epochs, imgsz, lr0, mosaic, ...


class FLATrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no type information
    """ultralytics' trainer for our architectures, with bfloat16 on CPUs.

    ultralytics mixes precisions on accelerators only. On a CPU with AVX512-BF16 or AMX the
    convolutions are twice as fast in bfloat16 too.
    """

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: Stage | None = None, _callbacks: Any = None
    ) -> None:
        # The signature is ultralytics' own: it builds the trainer anew in each process of a
        # run on several GPUs.
        overrides = dict(overrides or {})
        on_cpu = str(overrides.get("device", "")) == "cpu" or not torch.cuda.is_available()
        self.bfloat16_on_cpu = on_cpu and overrides.get("amp") == "bf16"
        if on_cpu:
            overrides["amp"] = False
        super().__init__(cfg, overrides, _callbacks)
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
        `output/best.pt`: the best of the last stage, stripped, weights in float16.

    Raises:
        FileNotFoundError: when the data set, its pictures or the checkpoint do not exist.
        ValueError: when there is no such architecture, no stage, an argument in a stage that
            ultralytics does not know, or a run in `output` that is not to be resumed.
    """
    register()
    architecture(arch)  # what is wrong with the request fails before anything is written
    check_stages(stages)
    if pretrained is not None and not pretrained.is_file():
        raise FileNotFoundError(f"{pretrained}: there is no such file")
    # ultralytics puts relative folders below one of its own.
    output = output.resolve()
    if (output / "stage_1").exists() and not resume:
        raise ValueError(f"{output} holds a run already: --resume goes on with it")
    weights = pretrained.resolve() if pretrained else None
    output.mkdir(parents=True, exist_ok=True)
    data = with_absolute_paths(data, output / "data.yaml")
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
        FLATrainer(overrides=overrides).train()
        weights = best
    assert weights is not None
    strip(weights, output / "best.pt", asked=stages[-1])
    return output / "best.pt"


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError unless there are stages, of arguments that ultralytics knows."""
    if not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("a recipe is a list `stages` of ultralytics' training arguments")
    for number, stage in enumerate(stages, 1):
        if unknown := sorted(stage.keys() - DEFAULT_CFG_DICT.keys()):
            raise ValueError(f"stage {number}: ultralytics has no argument {', '.join(unknown)}")


def is_finished(last: Path) -> bool:
    """Whether a stage is complete: ultralytics marks its last checkpoint with epoch -1."""
    if not last.exists():
        return False
    # Our own file of a moment ago, and ultralytics loads it in full anyway to resume.
    return bool(torch.load(last, map_location="cpu", weights_only=False)["epoch"] == -1)


def with_absolute_paths(data: Path, copy: Path) -> Path:
    """Writes the data set's YAML to `copy` with its root made absolute, and returns `copy`.

    ultralytics takes a relative `path` from the working folder, where it only works by luck.
    """
    table = yaml.safe_load(data.read_text())
    if not isinstance(table, dict) or not {"train", "val", "names"} <= table.keys():
        raise ValueError(f"{data}: a data set's description has train, val and names")
    root = (data.parent / table.get("path", ".")).resolve()
    for split in ("train", "val"):
        entries = table[split] if isinstance(table[split], list) else [table[split]]
        for entry in map(str, entries):
            if not (root / entry).exists():
                raise FileNotFoundError(f"{data}: {split} names {root / entry}, which is not there")
    table["path"] = str(root)
    copy.write_text(yaml.safe_dump(table, sort_keys=False))
    return copy
