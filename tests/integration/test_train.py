"""The training command as a user runs it, on a handful of rendered smears."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from export.checkpoint import load_checkpoint
from model.__main__ import main
from model.registration import register

pytestmark = pytest.mark.slow
LIMIT_S = 200


def run(*arguments: str, cwd: Path, repo: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ARGUMENTS` from a folder that is not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, repo_dir: Path) -> Path:
    """A data set whose description has a relative path, as most have."""
    folder: Path = tmp_path_factory.mktemp("smears")
    rendered = run(
        *("samples.render", "--count", "4", "--seed", "5", "--out", str(folder)),
        cwd=repo_dir,
        repo=repo_dir,
    )
    assert rendered.returncode == 0, rendered.stderr
    return folder / "data.yaml"


def test_a_recipe_of_two_stages_gives_a_checkpoint_and_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, repo_dir: Path
) -> None:
    stage = {"epochs": 1, "imgsz": 64, "batch": 2, "device": "cpu", "plots": False, "amp": "bf16"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [stage, stage | {"imgsz": 96}]}))
    command = (
        *("model", "train", "--arch", "yolov8n-fla", "--data", str(data)),
        *("--recipe", str(recipe), "--output", "run"),  # relative, as in the README
    )
    trained = run(*command, cwd=tmp_path, repo=repo_dir)
    assert trained.returncode == 0, trained.stderr
    best = Path(trained.stdout.splitlines()[-1])
    assert best == tmp_path / "run" / "best.pt"
    assert str(tmp_path).encode() not in best.read_bytes()  # nobody's paths travel with it

    register()
    checkpoint = load_checkpoint(best)
    assert checkpoint.architecture == "yolov8n-fla"
    assert checkpoint.class_names == ("RBC", "WBC", "Platelets")
    assert checkpoint.model.args["amp"] == "bf16"
    with (tmp_path / "run" / "stage_2" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    assert "Transferred" in trained.stdout + trained.stderr  # the second stage begins with these

    finished = tmp_path / "run" / "stage_2" / "weights" / "best.pt"
    written = finished.stat().st_mtime_ns
    again = run(*command, "--resume", cwd=tmp_path, repo=repo_dir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == str(best)
    assert finished.stat().st_mtime_ns == written


STOPPING = """
import sys
from model.__main__ import main
from model.train import FLATrainer

def stop(trainer):
    if trainer.epoch == 1:
        sys.exit("stopped")

original = FLATrainer.__init__
def interrupted(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.add_callback("on_fit_epoch_end", stop)
FLATrainer.__init__ = interrupted
main(sys.argv[1:])
"""


def test_an_interrupted_stage_goes_on_at_its_epoch(
    data: Path, tmp_path: Path, repo_dir: Path
) -> None:
    command = (
        *("train", "--data", str(data), "--epochs", "3", "--imgsz", "64", "--batch", "2"),
        *("--device", "cpu", "--output", "run"),
    )
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPING, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repo_dir), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert stopped.stderr.rstrip().endswith("stopped"), stopped.stderr
    results = tmp_path / "run" / "stage_1" / "results.csv"
    before = results.read_text().splitlines()

    again = run("model", *command, cwd=tmp_path, repo=repo_dir)
    assert again.returncode == 2
    assert "holds a run already: --resume goes on with it" in again.stderr

    resumed = run("model", *command, "--resume", cwd=tmp_path, repo=repo_dir)
    assert resumed.returncode == 0, resumed.stderr
    after = results.read_text().splitlines()
    assert after[: len(before)] == before  # those epochs were not trained again
    assert [line.split(",")[0] for line in after] == ["epoch", "1", "2", "3"]
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--arch", "yolov8n-flat", "--data", "{data}"], "'yolov8n-flat'; there are"),
        (["train", "--data", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "{data}", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "{data}", "--recipe", "{data}"], "a recipe is a list `stages`"),
        (["train", "--data", "{data}", "--recipe", "{unknown}"], "no argument learning_rate"),
        (["train", "--data", "{data}", "--pretrained", "no.pt"], "no.pt: there is no such file"),
        (["train", "--data", "{empty}"], "train names"),
        (["train", "--data", "{unknown}"], "has train, val and names"),
        (["info", "--imgsz", "100"], "--imgsz 100 is not a multiple"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments: list[str],
    words: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown, empty = tmp_path / "unknown.yaml", tmp_path / "empty.yaml"
    unknown.write_text("stages: [{learning_rate: 0.1}]\n")
    empty.write_text("train: images\nval: images\nnames: [a]\n")
    files = {"data": data, "unknown": unknown, "empty": empty}
    assert main([argument.format(**files) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
