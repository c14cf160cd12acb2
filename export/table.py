"""What an artifact's description and certificate say, as a person reads them."""

from collections.abc import Iterable, Mapping

from server.inference.artifact import Artifact, Metadata
from server.inference.certificate import Certificate, Verdict

VERDICTS: Mapping[Verdict, str] = {
    "draft": "NOT VERIFIED",
    "equal": "detections equal those of the source",
    "within_gate": "loses no more mAP50-95 than this precision may",
    "loss_accepted": "NOT SHOWN to keep its accuracy; exported with --accept-loss",
}


def table(rows: Mapping[str, str]) -> str:
    """Two aligned columns."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def model_rows(artifact: Artifact) -> dict[str, str]:
    """What the artifact is."""
    metadata = artifact.metadata
    shapes = sizes(metadata.buckets)
    return {
        "model": f"{metadata.name} ({metadata.architecture}), version {artifact.version}",
        "classes": class_names(metadata),
        "precision": f"{metadata.precision}, opset {metadata.opset}",
        "input": f"{shapes}, stride {metadata.stride}" + (", static" if metadata.static else ""),
        "source": f"sha256 {metadata.source_sha256}",
        "made with": ", ".join(f"{name} {version}" for name, version in metadata.tools.items()),
    }


def certificate_rows(certificate: Certificate) -> dict[str, str]:
    """What was compared, how far apart it was, how fast and how large the file is."""
    rows = {
        "verdict": VERDICTS[certificate.verdict],
        "compared": f"{certificate.images}, at {sizes(certificate.buckets)}, "
        f"batches of {', '.join(map(str, certificate.batch_sizes))}; {certificate.created}",
        "candidates": f"boxes within {certificate.tensor_max_abs_diff_boxes_px:.2g} px, "
        f"scores within {certificate.tensor_max_abs_diff_scores:.2g}; nine in ten within "
        f"{certificate.tensor_p90_abs_diff_boxes_px:.2g} px, "
        f"{certificate.tensor_p90_abs_diff_scores:.2g}",
        "detections": f"{certificate.detections_agreement:.2%} of "
        f"{certificate.detections_compared} the same, "
        f"boxes within {certificate.detections_max_box_diff_px:.2g} px, "
        f"scores within {certificate.detections_max_score_diff:.2g}",
        "accuracy": "not measured; labels are read where --data is a data set's YAML",
    }
    if accuracy := certificate.accuracy:
        tolerance = certificate.accuracy_gate
        rows["accuracy"] = (
            f"mAP50-95 {accuracy.artifact_map50_95:.4f}, source {accuracy.source_map50_95:.4f}; "
            f"mAP50 {accuracy.artifact_map50:.4f}, source {accuracy.source_map50:.4f}"
            + (f" (may lose {tolerance} of mAP50-95)" if tolerance is not None else "")
            + f"; {accuracy.objects} objects in {accuracy.images} images of {accuracy.data}"
        )
    if certificate.calibration:
        rows["calibrated"] = f"on {certificate.calibration}"
    if latency := certificate.latency:
        rows["latency"] = (
            f"{latency.median_ms:.1f} ms at {sizes([latency.input_hw])}"
            + (
                f", {latency.fp32_median_ms / latency.median_ms:.2f} times as fast as fp32"
                if latency.median_ms != latency.fp32_median_ms
                else ""
            )
            + f" ({latency.threads} thread{'s' * (latency.threads > 1)} of {latency.cpu})"
        )
    if certificate.file_bytes:
        rows["size"] = f"{certificate.file_bytes / 2**20:.1f} MiB"
    return rows


def sizes(shapes: Iterable[tuple[int, int]]) -> str:
    """480x640, 640x640."""
    return ", ".join(f"{height}x{width}" for height, width in shapes)


def class_names(metadata: Metadata, most: int = 10) -> str:
    """The number of classes and the first of their names."""
    names = metadata.class_names
    more = ", ..." if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
