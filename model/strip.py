"""Leaves of a checkpoint what is needed to use it."""

import io
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import read_run

KEPT = ("date", "version", "license", "docs", "epoch", "train_args", "train_metrics")


def strip(checkpoint: Path, output: Path, train_args: dict[str, Any]) -> None:
    """Copies a finished checkpoint without the trainer's state and without paths.

    What is left tells how the model was trained and not on whose machine.

    Args:
        checkpoint: as ultralytics leaves it at the end of a run, or of its last epoch.
        output: replaced when it exists.
        train_args: training arguments as they were given, where the trainer notes others: on a CPU
            it mixes precisions behind ultralytics' back.
    """
    content = read_run(checkpoint)
    model = content["model"].half()
    model.args = without_paths(dict(model.args) | train_args)
    model.__dict__.update(without_paths(model.__dict__))  # where its layers were taken from
    kept = {key: content[key] for key in KEPT if key in content}
    kept["epoch"] = -1  # so ultralytics marks a finished one
    kept["train_args"] = without_paths(kept.get("train_args", {}) | train_args)
    save_whole({"model": model, **kept}, output)


def save_whole(content: dict[str, Any], output: Path) -> None:
    """Writes a checkpoint, in its place only when whole.

    Raises:
        OSError: it can't be written; what was there is there still.
    """
    buffer = io.BytesIO()  # torch itself would raise a RuntimeError on a full disk
    torch.save(content, buffer)
    temporary = output.with_suffix(".tmp")
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def without_paths(arguments: dict[str, Any]) -> dict[str, Any]:
    """Training arguments with only the last part of every absolute path."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in arguments.items()
    }
