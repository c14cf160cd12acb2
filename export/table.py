"""What an export tells at its end."""

from server.artifact import Artifact


def table(artifact: Artifact, seconds: float) -> str:
    """What was compared, how far apart it was, how long it took, how large the file is."""
    metadata, certificate = artifact.metadata, artifact.metadata.certificate
    shapes = ", ".join(f"{height}x{width}" for height, width in certificate.buckets)
    rows = {
        "model": f"{metadata.name} ({metadata.architecture}), version {artifact.version}",
        "compared": f"{certificate.images}, at {shapes}, "
        f"batches of {', '.join(map(str, certificate.batch_sizes))}",
        "candidates": f"boxes within {certificate.tensor_max_abs_diff_boxes_px:.1e} px, "
        f"scores within {certificate.tensor_max_abs_diff_scores:.1e}",
        "detections": f"{certificate.detections_compared} the same, "
        f"boxes within {certificate.detections_max_box_diff_px:.1e} px, "
        f"scores within {certificate.detections_max_score_diff:.1e}",
        "file": f"{artifact.path}, {artifact.path.stat().st_size / 2**20:.1f} MiB",
        "time": f"{seconds:.1f} s",
    }
    return "\n".join(f"{name:<11} {text}" for name, text in rows.items())
