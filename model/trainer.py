"""ultralytics' own trainer, for our architectures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, RANK, torch_utils
from ultralytics.utils.torch_utils import unwrap_model

from model.checkpoint import read_run
from model.registration import architecture, register

Stage = dict[str, Any]  # ultralytics' training arguments: epochs, imgsz, lr0, mosaic, ...


def mixed_precision(amp: object, *, bfloat16: bool) -> object:
    """The value of `amp` to train with.

    True makes ultralytics try the GPU with a model that it downloads, and reads with full trust.

    Args:
        amp: as it was given.
        bfloat16: whether the GPU computes in it.
    """
    if amp is True:
        return "bf16" if bfloat16 else False
    return amp


class FLATrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no type information
    """ultralytics' trainer for our architectures, with bfloat16 on CPUs.

    ultralytics mixes precisions on accelerators only. On a CPU with AVX512-BF16 or AMX the
    convolutions are twice as fast in bfloat16 too.
    """

    last: Path
    best: Path
    best_fitness: float

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: Stage | None = None, _callbacks: Any = None
    ) -> None:
        # The signature is ultralytics' own: it builds the trainer anew in each process of a
        # run on several GPUs.
        # A folder to resume from, and what a recipe names, may be somebody else's.
        tasks.torch_load = torch_utils.torch_load = read_run
        overrides = dict(overrides or {})
        on_cpu = str(overrides.get("device", "")) == "cpu" or not torch.cuda.is_available()
        amp = overrides.get("amp", True)
        self.bfloat16_on_cpu = on_cpu and amp == "bf16"
        overrides["amp"] = (
            False if on_cpu else mixed_precision(amp, bfloat16=torch.cuda.is_bf16_supported())
        )
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
        table = cfg
        if isinstance(cfg, str):  # a user's own file has a path, ours have a name
            table = architecture(cfg if Path(cfg).is_absolute() else Path(cfg).stem)
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

    def validate(self) -> Any:
        """The figures as numbers of Python's; of numpy's a checkpoint's reader keeps nothing."""
        metrics, fitness = super().validate()
        if metrics is None:
            return None, None
        self.best_fitness = float(self.best_fitness)
        return {name: float(value) for name, value in metrics.items()}, float(fitness)

    def save_model(self) -> bool:
        """Writes the checkpoints of an epoch, each whole or not at all."""
        with self.checkpoints_beside():
            return bool(super().save_model())

    def final_eval(self) -> None:
        """Strips the finished checkpoints, each whole or not at all, and measures the best."""
        if RANK not in (-1, 0):  # of several GPUs' processes the first does the writing
            super().final_eval()
            return
        with self.checkpoints_beside() as beside:
            for place, copy in beside.items():
                if place.exists():
                    shutil.copyfile(place, copy)
            super().final_eval()

    @contextmanager
    def checkpoints_beside(self) -> Iterator[dict[Path, Path]]:
        """Has ultralytics write its checkpoints into a folder beside, and moves them from there.

        It writes over the earlier ones. On a full disk, or killed meanwhile, it would leave
        neither.

        Yields:
            Where each checkpoint is written, by its place.

        Raises:
            OSError: one can't be written; those in their places are as they were.
        """
        last, best = self.last, self.best
        folder = last.parent / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        self.last, self.best = folder / last.name, folder / best.name
        try:
            yield {last: self.last, best: self.best}
            # The last one marks a finished run, so it comes last.
            for place, made in ((best, self.best), (last, self.last)):
                if made.exists():
                    made.replace(place)
        finally:
            self.last, self.best = last, best
            shutil.rmtree(folder, ignore_errors=True)
