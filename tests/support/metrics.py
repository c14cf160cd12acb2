"""Metrics of a server that is not there."""

from typing import Any

from server.observability.metrics import Metrics, ServerStatus


def fresh(*reasons: str, **status: Any) -> Metrics:
    """Metrics of a server that is ready and has nothing to do.

    Args:
        reasons: error codes that start at 0.
        status: what differs, by the names of `ServerStatus`.
    """
    idle = ServerStatus("ready", 0, 96, 0, 2**20, instances=2, active_inferences=1)
    metrics = Metrics(reasons)
    metrics.observe(lambda: idle._replace(**status))
    return metrics
