"""The command, from a checkpoint to a file that the serving code loads."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from export.__main__ import Interrupt, Interrupted, main, progress
from export.optimize import FORBIDDEN_OPERATORS
from model.registration import architecture, register
from server.inference.artifact import Metadata, load_artifact
from server.inference.certificate import Certificate
from server.inference.detector import Detector
from server.inference.session import Session
from server.vision.nms import DetectParameters

register()


@pytest.mark.slow
def test_the_default_checkpoint_is_exported_at_another_size(
    tmp_path: Path, repo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small inputs have few objects, and a thousandth candidate that scores next to nothing."""
    checkpoint = repo_dir / "weights" / "yolov8n-fla-bccd.pt"
    assert main([str(checkpoint), "-o", str(tmp_path / "small.onnx"), "--imgsz", "320"]) == 0
    assert "it was trained with --imgsz 480, this file is for 320" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_with_nearly_equal_scores_is_exported(tmp_path: Path) -> None:
    """As after one epoch of training: which of its boxes NMS keeps hangs on the last digit."""
    torch.manual_seed(0)
    network = DetectionModel(architecture("yolov8n-fla"), nc=3, verbose=False)
    for layer in network.model[-1].cv3:
        nn.init.normal_(layer[-1].weight, std=1e-2)
    network.names = {0: "a", 1: "b", 2: "c"}
    torch.save({"model": network}, tmp_path / "new.pt")
    command = [str(tmp_path / "new.pt"), "-o", str(tmp_path / "new.onnx"), "--imgsz", "320"]
    assert main(command) == 0
    assert load_artifact(tmp_path / "new.onnx").metadata.certificate.detections_compared > 0


@pytest.fixture(scope="module", params=["yolov8n-fla", "yolov8n-c2f-fla", "yolov8n"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that detects things all the same."""
    torch.manual_seed(0)
    plain = request.param == "yolov8n"
    table = yaml_model_load("yolov8n.yaml") if plain else architecture(request.param)
    network = DetectionModel(table, nc=3, verbose=False)
    for layer in network.model[-1].cv3:
        nn.init.normal_(layer[-1].weight, std=0.15)
    network.names = {0: "a", 1: "b", 2: "c"}
    path: Path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.pt"
    torch.save({"epoch": -1, "model": network.half(), "train_args": {}}, path)
    return path


def test_a_checkpoint_becomes_an_artifact_with_its_certificate(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder" / "model.onnx"
    assert main([str(checkpoint), "-o", str(output), "--imgsz", "96"]) == 0
    out = capsys.readouterr().out
    assert "candidates  boxes within" in out
    assert "it was trained with" not in out, "the file does not say"

    artifact = load_artifact(output)
    assert artifact.metadata.architecture == checkpoint.stem
    assert artifact.metadata.class_names == ("a", "b", "c")
    assert artifact.metadata.buckets == ((96, 96), (64, 96), (96, 64))
    certificate = artifact.metadata.certificate
    assert certificate.verdict == "equal"
    assert certificate.file_bytes == output.stat().st_size
    assert certificate.detections_compared > 0
    assert certificate.batch_sizes == (1, 2, 3, 8)
    assert certificate.buckets == artifact.metadata.buckets
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]

    model = onnx.load(output)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [17]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not FORBIDDEN_OPERATORS & {node.op_type for node in model.graph.node}

    session = Session.open(artifact, device="cpu")
    images = [np.full((40, 90, 3), 200, np.uint8), np.zeros((333, 111, 3), np.uint8)]
    together = Detector(artifact, session).detect(images, DetectParameters(conf=0.1))
    assert [(found.width, found.height) for found in together] == [(90, 40), (111, 333)]
    session.close()


def test_a_static_artifact_has_one_shape(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "static.onnx"
    assert main([str(checkpoint), "-o", str(output), "--imgsz", "64", "--static"]) == 0
    assert load_artifact(output).metadata.buckets == ((64, 64),)
    shape = onnx.load(output).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in shape][1:] == [64, 64, 3]
    assert shape[0].dim_param == "batch"


def test_a_failed_verification_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=False)
    content["model"].model[4].cv1.conv.weight.data[0, 0] = float("nan")
    broken, existing = tmp_path / "broken.pt", tmp_path / "existing.onnx"
    torch.save(content, broken)
    existing.write_bytes(b"precious")
    assert main([str(broken), "-o", str(existing), "--imgsz", "64", "--force"]) == 2
    assert "differ by inf" in capsys.readouterr().err
    assert existing.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pt", "existing.onnx"]


def test_what_goes_wrong_is_one_line_and_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "existing.onnx"
    existing.write_bytes(b"precious")
    dangling = tmp_path / "dangling.onnx"
    dangling.symlink_to("nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_bytes(b"")
    readonly = Path("/proc/self/model.onnx")  # not even root makes files there
    cases = {
        "--force": [str(checkpoint), "-o", str(existing)],
        "--imgsz 0 is not": [str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--imgsz", "0"],
        "ends in .onnx": [str(checkpoint), "-o", str(tmp_path / "best.pth")],
        "take 96 or 128": [str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--imgsz", "100"],
        "is the source": [str(checkpoint), "-o", str(checkpoint), "--force"],
        "there is a file already": [str(checkpoint), "-o", str(dangling)],
        f"{existing} is a file; the artifact needs a folder": [
            *(str(tmp_path / "no.pt"), "-o", str(existing / "a.onnx"))  # before the source is read
        ],
        "--imgsz 100": [str(checkpoint), "-o", str(existing), "--force", "--imgsz", "100"],
        "No such file": [str(tmp_path / "no.pt"), "-o", str(tmp_path / "a.onnx")],
        str(readonly.parent): [str(checkpoint), "-o", str(readonly), "--imgsz", "64"],
        "a folder of images or a data set's YAML is expected": [
            *(str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--data", str(tmp_path / "file"))
        ],
        "no image": [str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--data", str(empty)],
        "is a folder; the artifact is a file": [str(checkpoint), "-o", str(empty), "--force"],
        "--data DATA.yaml": [
            str(checkpoint),
            "-o",
            str(tmp_path / "a.onnx"),
            "--precision",
            "fp16",
        ],
        "--calibration is for int8, not for fp32": [
            *(str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--calibration", str(empty))
        ],
        "no image to calibrate with": [
            *(str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--precision", "int8"),
            *("--imgsz", "64", "--accept-loss", "--calibration", str(empty)),
        ],
        "--calibration FOLDER": [
            *(str(checkpoint), "-o", str(tmp_path / "a.onnx"), "--precision", "int8"),
            "--accept-loss",
        ],
    }
    for words, arguments in cases.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert existing.read_bytes() == b"precious"
    left = ["dangling.onnx", "empty", "existing.onnx", "file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("artifact") / "model.onnx"
    assert main([str(checkpoint), "-o", str(path), "--imgsz", "64", "--static"]) == 0
    return path


def test_an_artifact_says_what_it_is(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(artifact)]) == 0
    text = capsys.readouterr().out
    assert "detections equal those of the source" in text
    assert "accuracy    not measured" in text
    assert main(["inspect", str(artifact), "--json"]) == 0
    assert Metadata.model_validate_json(capsys.readouterr().out) == load_artifact(artifact).metadata


def test_inspecting_needs_no_training_library(artifact: Path, repo_dir: Path) -> None:
    """They take seconds to load."""
    code = (
        "import sys; from export.__main__ import main; main(['inspect', sys.argv[1]]); "
        "sys.exit(bool({'torch', 'ultralytics', 'onnx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(artifact)]
    assert subprocess.run(command, cwd=repo_dir, stdout=subprocess.DEVNULL).returncode == 0


def test_verification_can_be_repeated_and_changes_nothing(
    artifact: Path, checkpoint: Path, repo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = artifact.read_bytes()
    capsys.readouterr()
    command = ["verify", str(artifact), "--source", str(checkpoint), "--json"]
    assert main([*command, "--data", str(repo_dir / "samples")]) == 0
    certificate = Certificate.model_validate_json(capsys.readouterr().out)
    assert certificate.verdict == "equal"
    assert "images of samples" in certificate.images
    assert artifact.read_bytes() == before


def test_an_artifact_of_another_source_or_with_another_graph_is_found(
    artifact: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=False)
    other = tmp_path / "other.pt"
    torch.save(content | {"date": "another"}, other)
    assert main(["verify", str(artifact), "--source", str(other)]) == 2
    assert "was made from another file" in capsys.readouterr().err

    graph = onnx.load(artifact)
    graph.graph.node[0].name = "changed"
    onnx.save(graph, tmp_path / "changed.onnx")
    for command in (["inspect"], ["verify", "--source", str(checkpoint)]):
        assert main([command[0], str(tmp_path / "changed.onnx"), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "the graph was changed after verification" in error
        assert error.count("\n") == 1


def test_an_artifact_that_names_its_classes_otherwise_is_found(
    artifact: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = onnx.load(artifact)  # the hash is of the graph alone
    renamed.metadata_props[0].value = renamed.metadata_props[0].value.replace('"a","b"', '"b","a"')
    onnx.save(renamed, tmp_path / "renamed.onnx")
    command = ["verify", str(tmp_path / "renamed.onnx"), "--source", str(checkpoint)]
    assert main(command) == 2
    assert "names its classes b, a, c" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", str(checkpoint), "-o", str(tmp_path / "a.onnx")]
    process = subprocess.Popen(
        [*command, "--imgsz", "96"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "load" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "python -m export: interrupted"
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_ctrl_c_that_was_lost_on_its_way_stops_at_the_next_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt = Interrupt()
    report = progress(interrupt)
    report("one")
    with suppress(Interrupted):  # as a callback from native code does
        interrupt()
    with pytest.raises(Interrupted):
        report("two")
    assert capsys.readouterr().out == "one\n"


def test_a_background_job_goes_on_at_the_ctrl_c_of_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "export", str(checkpoint), "-o", str(tmp_path / "a.onnx")]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command, "--imgsz", "96"]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "load" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "rewrite" in process.stdout.readline()
        process.kill()


def test_a_full_disk_leaves_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    existing = tmp_path / "model.onnx"
    existing.write_bytes(b"precious")
    command = [sys.executable, "-m", "export", str(checkpoint), "-o", str(existing)]
    # Nothing larger than a megabyte can be written, as on a full disk.
    limited = ["sh", "-c", 'ulimit -f 1024; trap "" XFSZ; exec "$@"', "sh", *command]
    done = subprocess.run(
        [*limited, "--imgsz", "64", "--static", "--force"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert existing.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_without_the_packages_of_export_it_says_how_to_get_them(repo_dir: Path) -> None:
    program = (
        "import sys; sys.modules['onnxslim'] = None; from export.__main__ import main; "
        "sys.exit(main(['model.pt', '-o', 'model.onnx']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=repo_dir, capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "onnxslim is missing" in line
    assert "make env" in line
