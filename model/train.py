"""Training with ultralytics' own trainer, in one or more stages."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from ultralytics.cfg import check_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.plotting import plot_results

from model.checkpoint import check_table, describe, read_checkpoint, read_run
from model.description import class_names, described
from model.registration import architecture, register
from model.strip import save_whole, strip
from model.trainer import FLATrainer, Stage
from model.transfer import transfer

STRIDE = 32  # of the coarsest level, in pixels
MARK = "# Made by python -m model train.\n"  # the data set's own file has the same name


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
        arch: name, or path of a YAML, as `model.registration.architecture` takes it.
        data: a data set's YAML; its `path` is taken relative to the YAML, not to where we run.
        stages: run in this order, each from the best weights of the one before; stage i writes
            `output/stage_i` with ultralytics' curves, and checkpoints after every epoch.
        output: folder for the run, made if missing.
        pretrained: checkpoint whose matching layers the first stage starts from, by structure
            (`model.transfer`); what was taken is logged. Nothing in the file is run.
        resume: go on where an interrupted run in `output` stopped.

    Returns:
        `output/best.pt`: the best of the last stage, stripped, weights in float16.

    Raises:
        FileNotFoundError: when the data set or its images do not exist.
        ValueError: when there is no such architecture or it can't be built, no stage, an argument
            in a stage that ultralytics does not know, an image size that is not a multiple of the
            stride, a checkpoint of another scale, or a run in `output` that is not to be resumed or
            can't be, or somebody else's data.yaml there.
        OSError: when a file can't be written; checkpoints of earlier epochs stay whole.
    """
    if arch.endswith((".yaml", ".yml")):
        arch = str(Path(arch).resolve())
    # What is wrong with the request fails before anything is written.
    check_stages(stages)
    described_data = described(data)
    names = ("item",) if stages[0].get("single_cls") else class_names(described_data, data)
    seed = stages[0].get("seed", DEFAULT_CFG_DICT["seed"])
    model = network(arch, names, seed)
    # ultralytics puts relative folders below one of its own.
    output = output.resolve()
    begun = [output / "stage_1" / "weights" / "last.pt", output / "best.pt"]
    is_begun = any(path.exists() for path in begun)
    if is_begun and not resume:
        raise ValueError(f"{output} holds a run already: --resume goes on with it")
    copy = output / "data.yaml"
    if copy.exists() and not is_begun and not copy.read_bytes().startswith(MARK.encode()):
        raise ValueError(f"{copy} is not of a run: choose another --output")
    report = transfer(read_checkpoint(pretrained), model) if pretrained else None

    output.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(described_data, sort_keys=False, allow_unicode=True)
    temporary = copy.with_suffix(".tmp")
    temporary.write_text(MARK + text, encoding="utf-8")
    temporary.replace(copy)
    weights = None
    initial = output / "initial.pt"
    if report is not None:
        # As a file, because a run on several GPUs starts in processes of its own.
        save_whole({"model": model, "train_args": {}}, initial)
        weights = initial
    elif resume and initial.exists():  # of a run that was interrupted before its first checkpoint
        read_run(initial)
        weights = initial
    for number, stage in enumerate(stages, 1):
        run = output / f"stage_{number}"
        best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
        if resume and is_finished(last):
            weights = best
            continue
        overrides = {
            **stage,
            "model": arch if Path(arch).is_absolute() else f"{arch}.yaml",
            "data": str(copy),
            "pretrained": str(weights) if weights else False,
            "project": str(output),
            "name": run.name,
            "task": "detect",
            "exist_ok": True,
        }
        if resume and last.exists():
            # Or it would write where the file says.
            overrides |= {"model": str(last), "resume": str(last), "save_dir": str(run)}
        LOGGER.info(f"stage {number} of {len(stages)}: {run}")
        if report is not None and weights == initial and "resume" not in overrides:
            LOGGER.info(f"start: {report}")
        try:
            FLATrainer(overrides=overrides).train()
        except NotImplementedError as error:  # an optimizer that there is not
            raise ValueError(f"stage {number}: {error}") from None
        weights = best
    assert weights is not None
    initial.unlink(missing_ok=True)
    strip(weights, output / "best.pt", train_args=stages[-1])
    return output / "best.pt"


def network(arch: str, names: Sequence[str], seed: int) -> DetectionModel:
    """A new network of an architecture with these classes.

    Raises:
        ValueError: there is no such architecture, or its rows do not fit together.
    """
    register()
    table = architecture(arch) | {"nc": len(names)}
    check_table(arch, table)  # or what comes out could not be read back
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = DetectionModel(table, nc=len(names), verbose=False)
    except Exception as error:  # the parser raises anything at a row that it can't take
        raise ValueError(f"{arch}: can't be built: {describe(error)}") from error
    model.names = dict(enumerate(names))
    return model


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError unless there are stages, of arguments that ultralytics takes."""
    if not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("a recipe is a list `stages` of ultralytics' training arguments")
    for number, stage in enumerate(stages, 1):
        if unknown := sorted(map(str, stage.keys() - DEFAULT_CFG_DICT.keys())):
            raise ValueError(f"stage {number}: ultralytics has no argument {', '.join(unknown)}")
        try:
            check_cfg(dict(stage))  # it changes what it is given
        except TypeError as error:
            raise ValueError(f"stage {number}: {error}") from None
        imgsz = stage.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
        if not isinstance(imgsz, int) or imgsz < STRIDE or imgsz % STRIDE:
            raise ValueError(
                f"stage {number}: imgsz {imgsz} is not a multiple of the stride, {STRIDE}"
            )


def is_finished(last: Path) -> bool:
    """Whether a stage is complete; one that was killed behind its last epoch gets its curves."""
    if not last.exists():
        return False
    best = last.with_name("best.pt")  # what training ends with, so better refused now
    content = [read_run(path) for path in (best, last) if path.exists()][-1]
    try:
        epoch, epochs = content["epoch"], content["train_args"]["epochs"]
        is_last = bool(epoch + 1 >= epochs)
    except (KeyError, TypeError):
        raise ValueError(f"{last}: not a checkpoint to resume from") from None
    is_stripped = bool(epoch == -1)  # so ultralytics marks what it has completed
    if is_last and not is_stripped:
        plot_results(file=last.parent.with_name("results.csv"))
    return is_last or is_stripped
