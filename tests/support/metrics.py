"""Metrics of a server that is not there."""

from typing import Any

from server.observability.metrics import Metrics


def fresh(*reasons: str, **asked: Any) -> Metrics:
    """Metrics of a server that is ready and has nothing to do.

    Args:
        reasons: error codes that start at 0.
        asked: what differs, by the names of the constructor's arguments.
    """
    nothing: dict[str, Any] = {
        "queue_images": lambda: 0,
        "inflight_body_bytes": lambda: 0,
        "instances": lambda: 2,
        "active_inferences": lambda: 1,
        "state": lambda: "ready",
        "max_queue_images": 96,
        "max_inflight_body_bytes": 2**20,
        "dropped_log_lines": lambda: 0,
    }
    return Metrics(reasons, **(nothing | asked))
