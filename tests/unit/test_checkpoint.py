import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoint import load_checkpoint
from export.errors import CheckpointRefused, ModelUnsupported


class Hostile:
    """Unpickled the usual way, makes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_runs_a_command_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "hostile.pt"
    torch.save({"model": Hostile(os.system, f"touch {trace}")}, path)
    with pytest.raises(CheckpointRefused, match=r"posix\.system") as caught:
        load_checkpoint(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    with path.open("rb"):
        torch.load(path, weights_only=False)  # the file does what the test says it would
    assert trace.exists()


def test_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"model": Hostile(Path, "anything")}, path)
    with pytest.raises(CheckpointRefused, match=r"it asks for pathlib\.Path,"):
        load_checkpoint(path)


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps(Hostile(os.system, "true")))
    with pytest.raises(CheckpointRefused):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=r"broken\.pt: not a complete checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, repo_dir: Path) -> None:
    whole = (repo_dir / "weights" / "yolov8n-fla-bccd.pt").read_bytes()
    path = tmp_path / "half.pt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointRefused, match="not a complete checkpoint"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"nothing\.pt: there is no such file"):
        load_checkpoint(tmp_path / "nothing.pt")


def test_a_checkpoint_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"layer": torch.zeros(2)}, path)
    with pytest.raises(ModelUnsupported, match="this holds dict"):
        load_checkpoint(path)


def test_the_default_checkpoint_is_described(repo_dir: Path) -> None:
    checkpoint = load_checkpoint(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    assert checkpoint.architecture == "yolov8n-fla"
    assert checkpoint.class_names == ("RBC", "WBC", "Platelets")
    assert all(p.dtype == torch.float32 for p in checkpoint.model.parameters())
    assert not checkpoint.model.training
