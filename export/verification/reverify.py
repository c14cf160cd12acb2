"""Compares an artifact with its source again: on other images, or on another machine."""

from collections.abc import Callable
from pathlib import Path

from export.errors import VerificationFailed
from export.sources.source import Origin, load_source
from export.verification.certify import certify, gather
from model.registration import register
from server.inference.artifact import load_artifact
from server.inference.certificate import Certificate

# Of the share of detections that both have: other images, or another CPU's kernels.
AGREEMENT_SLACK = 0.05


def reverify(
    file: Path,
    origin: Origin,
    data: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Certificate:
    """The certificate that an artifact would get now; the file stays as it is.

    Args:
        file: an artifact.
        origin: what it says it was made from.
        data: as `export.pipeline.Request.data`.
        report: is told of each step.

    Raises:
        ArtifactInvalid: the file is no artifact, or its graph was changed.
        VerificationFailed: it was made from another file, or does not answer as this one does.
        AccuracyLost: it loses more accuracy than its certificate says it may.
    """
    register()
    artifact = load_artifact(file)
    source = load_source(origin)
    metadata, then = artifact.metadata, artifact.metadata.certificate
    if metadata.source_sha256 != source.sha256:
        raise VerificationFailed(
            f"{file} was made from another file than {origin.path}: from one of sha256 "
            f"{metadata.source_sha256}, and this one's is {source.sha256}"
        )
    if metadata.class_names != source.class_names:
        raise VerificationFailed(
            f"{file} names its classes {', '.join(metadata.class_names)}, {origin.path} "
            f"{', '.join(source.class_names)}"
        )
    material = gather(data, source.class_names)
    # Without labels a loss can't be told; one that was accepted before is so still.
    tolerant = material.labelled is None or then.verdict == "loss_accepted"
    now = certify(artifact, source, material, accept_loss=tolerant, report=report)
    if now.detections_agreement < then.detections_agreement - AGREEMENT_SLACK:
        others = "" if now.images == then.images else "; others differ by more, give those (--data)"
        raise VerificationFailed(
            f"{now.detections_agreement:.1%} of {now.detections_compared} detections are the "
            f"source's in {now.images}, where the certificate says "
            f"{then.detections_agreement:.1%} in {then.images}{others}"
        )
    if material.labelled is None and now.verdict == "loss_accepted":
        words = f"{now.images}; the verdict is of {then.created}, no labels were given to repeat it"
        now = now.model_copy(update={"verdict": then.verdict, "images": words})
    # Latency is not measured again: what fp32 took is only known where it was made.
    unchanged = {"calibration": then.calibration, "file_bytes": file.stat().st_size}
    return now.model_copy(update=unchanged)
