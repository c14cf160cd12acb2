from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import ArtifactInvalid
from server.inference.artifact import Artifact, load_artifact
from server.inference.certificate import Accuracy, Certificate
from server.inference.repository import load_model, select_variant
from tests.support.artifacts import tiny_artifact

Make = Callable[..., Artifact]


def vnni() -> str | None:
    return "AVX512-VNNI"


def none() -> str | None:
    return None


def certificate(verdict: Any, *, measured: bool = True) -> Certificate:
    accuracy = Accuracy(
        data="cells, val",
        images=10,
        objects=100,
        source_map50_95=0.6181,
        source_map50=0.9,
        artifact_map50_95=0.6191,
        artifact_map50=0.9,
    )
    return Certificate(
        created="2026-01-01",
        verdict=verdict,
        tensor_max_abs_diff_boxes_px=0.0,
        tensor_max_abs_diff_scores=0.0,
        tensor_p90_abs_diff_boxes_px=0.0,
        tensor_p90_abs_diff_scores=0.0,
        detections_compared=0,
        detections_agreement=1.0,
        detections_max_box_diff_px=0.0,
        detections_max_score_diff=0.0,
        batch_sizes=(1,),
        buckets=((64, 64),),
        images="none",
        accuracy=accuracy if measured else None,
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes an artifact of a precision into the folder `tmp_path`."""

    def make(precision: str, verdict: str | None = None, **overrides: Any) -> Artifact:
        name = overrides.pop("file", f"{precision}.onnx")
        shown = verdict or ("equal" if precision == "fp32" else "within_gate")
        measured = overrides.pop("measured", True)
        values: dict[str, Any] = {
            "precision": precision,
            "certificate": certificate(shown, measured=measured),
        }
        return load_artifact(tiny_artifact(tmp_path / name, **(values | overrides)))

    return make


def test_a_file_is_one_artifact(make: Make) -> None:
    artifact = make("int8")
    assert load_model(artifact.path) == (artifact,)


def test_a_folder_is_every_artifact_in_it_and_nothing_else(make: Make, tmp_path: Path) -> None:
    artifacts = [make(precision) for precision in ("int8", "fp16", "fp32")]
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "model.pt").write_bytes(b"PK")
    (tmp_path / "older.onnx").mkdir()
    assert load_model(tmp_path) == tuple(sorted(artifacts, key=lambda each: each.path))


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(ArtifactInvalid, match=rf"{tmp_path}: there is no artifact"):
        load_model(tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactInvalid, match=r"missing: cannot be read: No such file"):
        load_model(tmp_path / "missing")


def test_one_broken_file_spoils_the_folder(make: Make, tmp_path: Path) -> None:
    make("fp32")
    (tmp_path / "other.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(ArtifactInvalid, match=r"other\.onnx"):
        load_model(tmp_path)


def test_a_link_to_nowhere_is_a_broken_file(make: Make, tmp_path: Path) -> None:
    make("fp32")
    (tmp_path / "int8.onnx").symlink_to("gone.onnx")
    with pytest.raises(ArtifactInvalid, match=r"int8\.onnx: cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({}, "both are int8"),
        ({"source_sha256": "1" * 64}, "different sources"),
        ({"class_names": ("a", "b", "c")}, "class names differ"),
        ({"input_hw": (96, 64)}, "input sizes differ: 96x64 and 64x64"),
    ],
)
def test_files_that_are_not_one_model_are_refused_by_name(
    make: Make, tmp_path: Path, overrides: dict[str, Any], problem: str
) -> None:
    make("int8", file="b.onnx")
    make("int8", file="a.onnx", **overrides)
    with pytest.raises(ArtifactInvalid, match=rf"a\.onnx and .*b\.onnx: .*{problem}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("device", "instructions", "order"),
    [
        ("cpu", vnni, ["int8", "fp32", "fp16"]),
        ("cpu", none, ["fp32", "fp16", "int8"]),
        ("cuda:0", vnni, ["fp16", "fp32", "int8"]),
        ("cuda:1", none, ["fp16", "fp32", "int8"]),
        ("tensorrt", none, ["fp16", "fp32", "int8"]),
    ],
)
def test_the_best_for_the_device_is_taken_then_the_next(
    make: Make, device: str, instructions: Callable[[], str | None], order: list[str]
) -> None:
    artifacts = [make(precision) for precision in ("fp32", "fp16", "int8")]
    while len(artifacts) > 1:
        chosen, reason = select_variant(artifacts, device, instructions=instructions)
        assert chosen.metadata.precision == order.pop(0)
        assert reason.startswith(f"{chosen.metadata.precision}: ")
        artifacts.remove(chosen)


def test_a_file_that_was_not_shown_to_keep_its_accuracy_is_left_out_and_that_is_said(
    make: Make,
) -> None:
    artifacts = [make("int8", "loss_accepted", measured=False), make("fp32"), make("fp16")]
    chosen, reason = select_variant(artifacts, "cpu", instructions=vnni)
    assert chosen.metadata.precision == "fp32"
    assert reason.endswith("; int8 was left out: its loss of accuracy was not measured")


def test_none_that_kept_its_accuracy_is_an_error_that_says_how_to_serve_one(make: Make) -> None:
    artifacts = [make("int8", "loss_accepted"), make("fp16", "loss_accepted")]
    with pytest.raises(ArtifactInvalid, match="--precision int8 or fp16"):
        select_variant(artifacts, "cpu", instructions=vnni)


def test_the_precision_that_is_asked_for_is_taken_whatever_its_certificate_says(
    make: Make,
) -> None:
    artifacts = [make("fp32"), make("int8", "loss_accepted")]
    chosen, reason = select_variant(artifacts, "cuda:0", "int8", instructions=none)
    assert chosen is artifacts[1]
    assert reason.startswith("int8: asked for; beyond its tolerance (mAP50-95 0.6191")


@pytest.mark.parametrize("precisions", [["fp32"], ["fp32", "int8"]])
def test_a_precision_that_is_not_there_is_refused_with_what_there_is(
    make: Make, precisions: list[str]
) -> None:
    artifacts = [make(precision) for precision in precisions]
    with pytest.raises(ArtifactInvalid, match=r"fp16 was asked for.*fp32 \(.*fp32\.onnx\)"):
        select_variant(artifacts, "cpu", "fp16", instructions=vnni)


def test_the_only_file_is_taken_though_its_loss_was_accepted(make: Make) -> None:
    artifact = make("int8", "loss_accepted", measured=False)
    assert select_variant([artifact], "cpu", instructions=vnni).artifact is artifact
