"""The training command as a user runs it, on a handful of rendered smears."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from export.sources.checkpoint import load_checkpoint
from model.__main__ import main
from model.registration import register

pytestmark = pytest.mark.slow
LIMIT_S = 200
DEFAULT = Path(__file__).resolve().parents[3] / "weights" / "yolov8n-fla-bccd.pt"


def run(*arguments: str, cwd: Path, repo: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ARGUMENTS`, or `python -c ...`, from a folder that is not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *(() if arguments[0] == "-c" else ("-m",)), *arguments],
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
    # Steps of no length: what comes out is what went in.
    stage |= {"optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [stage, stage | {"imgsz": 96}]}))
    command = (
        *("model", "train", "--arch", "yolov8n-fla", "--data", str(data)),
        *("--recipe", str(recipe), "--output", "run"),  # relative, as in the README
        *("--pretrained", str(DEFAULT)),
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
    said = trained.stdout + trained.stderr
    assert said.count("start: 365 of 365 tensors from yolov8n-fla-bccd.pt\n") == 1
    assert said.count("Transferred 365/365 items") == 2  # the second stage begins with the first's
    start = dict(load_checkpoint(DEFAULT).model.named_parameters())
    for name, weight in checkpoint.model.named_parameters():
        assert torch.equal(weight, start[name]), name
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("best.pt", "data.yaml", "stage_1", "stage_2")
    ]

    finished = tmp_path / "run" / "stage_2" / "weights" / "best.pt"
    written = finished.stat().st_mtime_ns
    again = run(*command, "--resume", cwd=tmp_path, repo=repo_dir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == str(best)
    assert finished.stat().st_mtime_ns == written


# Kills the process, or fills its disk, in the given epoch.
MISHAP = """
import os, resource, signal, sys
from model.__main__ import main
from model.trainer import FLATrainer

mishap, event, epoch = sys.argv[1:4]

def strike(trainer):
    if trainer.epoch == int(epoch):
        if mishap == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # No file can grow past this, which a checkpoint does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

original = FLATrainer.__init__
def struck(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.add_callback(event, strike)
FLATrainer.__init__ = struck
sys.exit(main(sys.argv[4:]))
"""


def test_a_run_that_was_killed_or_met_a_full_disk_goes_on_at_its_epoch(
    data: Path, tmp_path: Path, repo_dir: Path
) -> None:
    command = (
        *("train", "--data", str(data), "--epochs", "3", "--imgsz", "64", "--batch", "2"),
        *("--device", "cpu", "--output", "run", "--arch", "yolov8n-mine.yaml"),
    )
    table = (repo_dir / "model" / "yolov8-fla.yaml").read_text()
    own = table.replace("[1024, 20, 8]", "[1024, 20, 4]")
    (tmp_path / "yolov8n-mine.yaml").write_text(own)
    mishap = ("-c", MISHAP, "kill", "on_train_batch_end", "1")
    killed = run(*mishap, *command, cwd=tmp_path, repo=repo_dir)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stage = tmp_path / "run" / "stage_1"
    before = (stage / "results.csv").read_text().splitlines()

    again = run("model", *command, cwd=tmp_path, repo=repo_dir)
    assert again.returncode == 2
    assert "holds a run already: --resume goes on with it" in again.stderr

    # At the checkpoint of an epoch, and when the last one is finished off.
    for event, epoch in (("on_train_batch_end", 1), ("on_model_save", 2)):
        mishap = ("-c", MISHAP, "full", event, str(epoch))
        full = run(*mishap, *command, "--resume", cwd=tmp_path, repo=repo_dir)
        assert full.returncode == 2, full.stderr
        assert full.stderr.splitlines()[-1].startswith("python -m model train: [Errno 27]")
        weights = {path.name for path in (stage / "weights").iterdir()}
        assert weights == {"last.pt", "best.pt"}
        kept = torch.load(stage / "weights" / "last.pt", weights_only=False)
        assert kept["epoch"] == (0 if epoch == 1 else 2)
        assert kept["optimizer"]

    # It goes on where it is, not where its checkpoint says that it was.
    (tmp_path / "run").rename(tmp_path / "moved")
    stage = tmp_path / "moved" / "stage_1"
    moved = ["moved" if argument == "run" else argument for argument in command]
    resumed = run("model", *moved, "--resume", cwd=tmp_path, repo=repo_dir)
    assert resumed.returncode == 0, resumed.stderr
    assert not (tmp_path / "run").exists()
    after = (stage / "results.csv").read_text().splitlines()
    assert after[: len(before)] == before  # those epochs were not trained again
    assert [line.split(",")[0] for line in after][-1] == "3"
    assert (stage / "results.png").stat().st_size > 0  # the curves
    checkpoint = load_checkpoint(tmp_path / "moved" / "best.pt")
    assert checkpoint.architecture == "yolov8n-mine"
    assert checkpoint.model.model[10].attention.num_heads == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--arch", "yolov8n-flat", "--data", "{data}"], "'yolov8n-flat'; there are"),
        (["train", "--data", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "{data}", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "{data}", "--recipe", "{data}"], "a recipe is a list `stages`"),
        (["train", "--data", "{data}", "--recipe", "{unknown}"], "no argument learning_rate"),
        (["train", "--data", "{data}", "--pretrained", "no.pt"], "no.pt: No such file"),
        (["train", "--data", "{empty}"], "train names"),
        (["train", "--data", "{unknown}"], "has train, val and names"),
        (["train", "--data", "{data}", "--pretrained", "{data}"], "not a complete checkpoint"),
        (["train", "--data", "{data}", "--imgsz", "100"], "imgsz 100 is not a multiple of the"),
        (["train", "--data", "{data}", "--arch", "{heads}"], "dim 256 is not a multiple of num_h"),
        (["train", "--data", "{data}", "--arch", "{scaleless}"], "no scale: call the file yolov8n"),
        (["train", "--data", "{data}", "--arch", "{unknown}"], "has a backbone and a head"),
        (["train", "--data", "{data}", "--arch", "{stranger}"], "has layers SPPELAN, which this"),
        (["train", "--data", "{data}", "--output", "{data}/run"], "Not a directory"),
        (["train", "--data", "{other}/data.yaml", "--output", "{other}"], "is not of a run"),
        (["train", "--data", "{data}", "--recipe", "{mistyped}"], "stage 1: 'lr0=fast' is of inv"),
        (["train", "--data", "{latin}"], "latin.yaml: not a text in UTF-8"),
        (["train", "--data", "{odd}"], "train names"),
        (
            ["train", "--data", "{data}", "--output", "{begun}", "--resume"],
            "last.pt: not a complete checkpoi",
        ),
        (["info", "--imgsz", "100"], "--imgsz 100 is not a multiple"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments: list[str],
    words: str,
    data: Path,
    tmp_path: Path,
    repo_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown, empty = tmp_path / "unknown.yaml", tmp_path / "empty.yaml"
    unknown.write_text("stages: [{learning_rate: 0.1}]\n")
    empty.write_text("train: images\nval: images\nnames: [a]\n")
    heads, scaleless = tmp_path / "yolov8n-mine.yaml", tmp_path / "mine.yaml"
    for own in (heads, scaleless):
        table = (repo_dir / "model" / "yolov8-fla.yaml").read_text()
        own.write_text(table.replace("[1024, 20, 8]", "[1024, 20, 7]"))
    files = {"data": data, "unknown": unknown, "empty": empty, "heads": heads}
    stranger = tmp_path / "yolov8n-stranger.yaml"
    stranger.write_text(table.replace("SPPF", "SPPELAN"))
    files |= {"scaleless": scaleless, "begun": tmp_path / "begun", "stranger": stranger}
    for name, content in {
        "mistyped": "stages: [{lr0: fast}]",
        "latin": "names: [Zelle grün]",
        "odd": "{train: images, val: images, names: [a], path: 5}",
    }.items():
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(content, encoding="latin-1")
    files["other"] = tmp_path / "other"
    files["other"].mkdir()
    others = files["other"] / "data.yaml"
    others.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | {"path": str(data.parent)}))
    kept = others.read_bytes()
    (files["begun"] / "stage_1" / "weights").mkdir(parents=True)
    (files["begun"] / "stage_1" / "weights" / "last.pt").write_bytes(b"none")
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(**files) for argument in arguments]) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert others.read_bytes() == kept
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_optimizer_that_there_is_not_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: [{task: segment, optimizer: fast, epochs: 1, imgsz: 64}]")
    command = ["train", "--data", str(data), "--recipe", str(recipe), "--device", "cpu"]
    assert main([*command, "--output", f"{tmp_path}/run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m model train: stage 1: Optimizer 'fast' not found")


def test_data_without_images_is_one_line_and_the_next_attempt_is_free(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    empty = tmp_path / "data.yaml"
    empty.write_text("train: images\nval: images\nnames: [a]\n")
    command = ["train", "--imgsz", "64", "--device", "cpu", "--output", f"{tmp_path}/run", "--data"]
    for _ in range(2):
        assert main([*command, str(empty)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("python -m model train: train: Error loading data from")
