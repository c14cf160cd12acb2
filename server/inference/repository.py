"""Which file of one model to run: there may be one in each precision."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from server.errors import ArtifactInvalid
from server.host import integer_instructions
from server.inference.artifact import Artifact, load_artifact
from server.inference.certificate import Precision

DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "weights"  # of a checkout

# Best first, and why. An int8 file comes last where it is not the best: its answers differ most.
_ON_INTEGER_CPU: dict[Precision, str] = {
    "int8": "this CPU has {instructions}",
    "fp32": "what a CPU computes best after int8",
    "fp16": "a CPU runs it in float32, which it loads slower",
}
_ON_CPU: dict[Precision, str] = {
    "fp32": "this CPU is not known to have instructions for int8 (VNNI)",
    "fp16": "a CPU runs it in float32, which it loads slower",
    "int8": "slow on this CPU, which is not known to have instructions for int8 (VNNI)",
}
_ON_CUDA: dict[Precision, str] = {
    "fp16": "a GPU's tensor cores compute in float16",
    "fp32": "what a GPU computes best after float16",
    "int8": "CUDA gains nothing by int8",
}
_ON_TENSORRT: dict[Precision, str] = {
    "fp16": "TensorRT computes in float16, and keeps closer to the source than with int8",
    "fp32": "what TensorRT takes after float16",
    "int8": "TensorRT computes in int8",
}


class SelectedVariant(NamedTuple):
    """The file to run, and why this one, in words."""

    artifact: Artifact
    reason: str


def load_model(path: Path) -> tuple[Artifact, ...]:
    """Reads what a `model` setting names.

    Args:
        path: an artifact, or a folder of artifacts (`*.onnx`) of one model, each in a precision of
            its own; whatever else is in the folder is left alone.

    Returns:
        At least one, by file name.

    Raises:
        ArtifactInvalid: a file is none or is damaged; or the folder has none, two of one
            precision, or two of different models. The message names the files.
    """
    if path == DEFAULT_MODEL and not path.exists():
        raise ArtifactInvalid(
            "no model is given, and the installed package brings none: --model FILE (or "
            "YOLO_FLA_MODEL) names one, which `python -m export` makes; the default weights are in "
            "the folder weights of the source"
        )
    if not path.is_dir():
        return (load_artifact(path),)
    try:
        files = sorted(
            each for each in path.iterdir() if each.suffix == ".onnx" and not each.is_dir()
        )
    except OSError as error:
        raise ArtifactInvalid(f"{path}: cannot be read: {error.strerror}") from None
    if not files:
        raise ArtifactInvalid(f"{path}: there is no artifact (*.onnx) in this folder")
    artifacts = tuple(load_artifact(file) for file in files)
    for one, other in combinations(artifacts, 2):
        _refuse_unless_together(one, other)
    return artifacts


def select_variant(
    artifacts: Sequence[Artifact],
    device: str,
    precision: str = "auto",
    *,
    instructions: Callable[[], str | None] = integer_instructions,
) -> SelectedVariant:
    """Takes the best file for a device of those that kept their accuracy.

    Args:
        artifacts: of one model, each in a precision of its own; at least one.
        device: "cpu", "cuda:N" or "tensorrt".
        precision: "auto", or the precision to take, whatever its certificate says.
        instructions: what this CPU has for int8, as `integer_instructions` says.

    Raises:
        ArtifactInvalid: there is no file of that precision; or, of several, none that kept
            its accuracy.
    """
    preference = _preference(device, instructions())
    by_precision = {each.metadata.precision: each for each in artifacts}
    if precision != "auto":
        requested = next((each for name, each in by_precision.items() if name == precision), None)
        if requested is None:
            there = ", ".join(f"{name} ({each.path})" for name, each in by_precision.items())
            raise ArtifactInvalid(f"precision {precision} was asked for, but there is {there}")
        return SelectedVariant(requested, f"{precision}: asked for; {_proof(requested)}")
    if len(artifacts) == 1:
        (only,) = artifacts
        name = only.metadata.precision
        remark = "" if name == next(iter(preference)) else f", {preference[name]}"
        return SelectedVariant(only, f"{name}: the only file{remark}; {_proof(only)}")
    left_out = []
    for name, why in preference.items():
        best = by_precision.get(name)
        if best is None:
            continue
        if best.metadata.certificate.verdict == "loss_accepted":
            left_out.append(f"; {name} was left out: {_proof(best)}")
            continue
        return SelectedVariant(best, f"{name}: {why}; {_proof(best)}{''.join(left_out)}")
    raise ArtifactInvalid(
        f"{artifacts[0].path.parent}: no file was shown to keep its accuracy; to serve one anyway "
        f"say --precision {' or '.join(by_precision)}"
    )


def _preference(device: str, instructions: str | None) -> dict[Precision, str]:
    if device == "tensorrt":
        return _ON_TENSORRT
    if device != "cpu":
        return _ON_CUDA
    if instructions is None:
        return _ON_CPU
    return _ON_INTEGER_CPU | {"int8": _ON_INTEGER_CPU["int8"].format(instructions=instructions)}


def _proof(artifact: Artifact) -> str:
    """What the certificate says, in a few words."""
    certificate = artifact.metadata.certificate
    if certificate.verdict == "equal":
        return "its detections are its source's"
    kept = certificate.verdict == "within_gate"
    accuracy = certificate.accuracy
    if accuracy is None:
        return "within its tolerance" if kept else "its loss of accuracy was not measured"
    figures = (
        f"mAP50-95 {accuracy.artifact_map50_95:.4f} against {accuracy.source_map50_95:.4f} "
        "of its source"
    )
    return f"{'within' if kept else 'beyond'} its tolerance ({figures})"


def _refuse_unless_together(one: Artifact, other: Artifact) -> None:
    here, there = one.metadata, other.metadata
    files = f"{one.path} and {other.path}"
    if here.source_sha256 != there.source_sha256:
        problem = "they were made of different sources"
    elif here.class_names != there.class_names:
        problem = "their class names differ"
    elif here.input_hw != there.input_hw:
        problem = "their input sizes differ: {}x{} and {}x{}".format(
            *here.input_hw, *there.input_hw
        )
    elif here.precision == there.precision:
        problem = f"both are {here.precision}"
    else:
        return
    raise ArtifactInvalid(
        f"{files}: {problem}; a folder holds one model, once in each precision at most"
    )
