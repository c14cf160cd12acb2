"""Reduced precisions from the command line: what is measured, refused, accepted and repeated.

The data set is made of the sample images and of what the source itself finds in them.
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export.__main__ import main
from model.registration import register
from server.inference.artifact import METADATA_KEY, load_artifact
from server.inference.certificate import Certificate
from server.inference.detector import Detector
from server.inference.session import Session
from server.vision.decode import decode
from server.vision.nms import DetectParameters

register()
pytestmark = pytest.mark.slow
SIZE = ["--imgsz", "160", "--static"]


@pytest.fixture(scope="module")
def checkpoint(repo_dir: Path) -> Path:
    return repo_dir / "weights" / "yolov8n-fla-bccd.pt"


@pytest.fixture(scope="module")
def data(checkpoint: Path, repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set's YAML: two images to train with, two to validate with."""
    folder: Path = tmp_path_factory.mktemp("data")
    single = folder / "single.onnx"
    assert main([str(checkpoint), "-o", str(single), *SIZE]) == 0
    artifact = load_artifact(single)
    session = Session.open(artifact, device="cpu")
    for split, numbers in {"train": (1, 3), "val": (1, 2)}.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in numbers:
            image = folder / "images" / split / f"{split}_{number}.jpg"
            shutil.copy(repo_dir / "samples" / f"smear_{number}.jpg", image)
            pixels = decode(image.read_bytes(), max_pixels=10**7)
            (found,) = Detector(artifact, session).detect([pixels], DetectParameters(conf=0.4))
            lines = []
            for (x1, y1, x2, y2), class_id in zip(
                found.detections.boxes.tolist(), found.detections.class_ids.tolist(), strict=True
            ):
                centre = ((x1 + x2) / 2 / found.width, (y1 + y2) / 2 / found.height)
                size = ((x2 - x1) / found.width, (y2 - y1) / found.height)
                lines.append(" ".join(map(str, (class_id, *centre, *size))))
            (folder / "labels" / split / f"{image.stem}.txt").write_text("\n".join(lines))
    session.close()
    described = folder / "data.yaml"
    names = list(artifact.metadata.class_names)
    described.write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return described


def test_float16_is_measured_and_can_be_verified_again(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "half.onnx"
    command = [str(checkpoint), "-o", str(output), *SIZE, "--precision", "fp16"]
    assert main([*command, "--data", str(data)]) == 0
    certificate = load_artifact(output).metadata.certificate
    assert certificate.verdict == "within_gate"
    assert certificate.accuracy_gate == 0.001
    assert certificate.accuracy is not None
    assert certificate.accuracy.images == 2
    assert certificate.accuracy.source_map50_95 > 0.5
    assert certificate.file_bytes == output.stat().st_size < 8e6
    assert certificate.latency is not None
    capsys.readouterr()
    verify = ["verify", str(output), "--source", str(checkpoint), "--json"]
    assert main([*verify, "--data", str(data)]) == 0
    again = Certificate.model_validate_json(capsys.readouterr().out)
    assert again.accuracy == certificate.accuracy
    assert again.latency is None  # it would be another machine's, or another day's
    assert again.detections_agreement == certificate.detections_agreement


def test_a_network_that_overflows_in_float16_gets_no_certificate(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does on a GPU only: a CPU computes such a file in float32."""
    content = torch.load(checkpoint, weights_only=False)
    norm, after = content["model"].model[1].bn, content["model"].model[2].cv1.conv
    content["model"].float()
    norm.weight.data *= 1e5
    norm.bias.data *= 1e5
    after.weight.data /= 1e5  # SiLU is nearly linear out there, so that boxes remain
    torch.save(content, tmp_path / "large.pt")
    command = [str(tmp_path / "large.pt"), "-o", str(tmp_path / "half.onnx"), *SIZE]
    command += ["--precision", "fp16", "--data", str(data), "--accept-loss"]
    assert main(command) == 2
    assert "a candidate is NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "half.onnx").exists()


def test_int8_has_to_show_what_it_loses_or_be_accepted(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = tmp_path / "black"  # ranges from these are far too small
    black.mkdir()
    cv2.imwrite(str(black / "black.png"), np.zeros((160, 160, 3), np.uint8))
    output = tmp_path / "int8.onnx"
    command = [str(checkpoint), "-o", str(output), *SIZE, "--precision", "int8"]
    command += ["--data", str(data), "--calibration", str(black)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "int8 loses 0." in error
    assert "the limit is 0.005; --accept-loss" in error
    assert not output.exists()

    assert main([*command, "--accept-loss"]) == 0
    assert "NOT SHOWN to keep its accuracy" in capsys.readouterr().out
    certificate = load_artifact(output).metadata.certificate
    assert certificate.verdict == "loss_accepted"
    assert certificate.calibration == "1 images of black"
    assert certificate.accuracy is not None
    assert certificate.accuracy.loss > 0.005
    assert certificate.detections_agreement < 1


@pytest.fixture(scope="module")
def int8(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled as within the tolerance, whatever it is on so few images."""
    output: Path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    command = [str(checkpoint), "-o", str(output), *SIZE, "--precision", "int8"]
    assert main([*command, "--data", str(data), "--accept-loss"]) == 0
    return certified_as(output, verdict="within_gate")


def certified_as(artifact: Path, **changes: object) -> Path:
    """Changes an artifact's certificate, which its hash does not cover."""
    model = onnx.load(artifact)
    (entry,) = [item for item in model.metadata_props if item.key == METADATA_KEY]
    metadata = json.loads(entry.value)
    metadata["certificate"] |= changes
    entry.value = json.dumps(metadata)
    onnx.save(model, artifact)
    return artifact


def test_a_verdict_that_was_not_repeated_is_told_as_such(
    int8: Path, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = ["verify", str(int8), "--source", str(checkpoint), "--json"]
    assert main([*verify, "--data", str(data.parent / "images" / "val")]) == 0
    certificate = Certificate.model_validate_json(capsys.readouterr().out)
    assert certificate.verdict == "within_gate"
    assert certificate.accuracy is None
    assert "no labels were given to repeat it" in certificate.images


def test_fewer_detections_on_other_images_ask_for_those_of_the_certificate(
    int8: Path, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = certified_as(Path(shutil.copy(int8, tmp_path)), detections_agreement=1.04)
    verify = ["verify", str(sound), "--source", str(checkpoint)]
    assert main(verify) == 2
    error = capsys.readouterr().err
    assert "in 8 generated images, where the certificate says 104.0% in 2 images of" in error
    assert "give those (--data)" in error
    certified_as(sound, images="2 images of val")
    assert main([*verify, "--data", str(data.parent / "images" / "val")]) == 2
    error = capsys.readouterr().err
    assert "where the certificate says 104.0% in 2 images of val" in error
    assert "give those" not in error
