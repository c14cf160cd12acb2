"""What part of its node's memory a worker may use: Ray shares out CPUs and GPUs, and no memory."""

from collections.abc import Mapping

import ray

from server.host import available_bytes


def memory_share(cpus: float, gpus: float) -> int:
    """Bytes for a worker of this process's node.

    Args:
        cpus: that Ray gave it.
        gpus: likewise.
    """
    own = ray.get_runtime_context().get_node_id()
    node = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == own)
    return int(share_of(node, cpus, gpus) * available_bytes())


def share_of(node: Mapping[str, float], cpus: float, gpus: float) -> float:
    """The larger of its shares of a node's CPUs and GPUs, over 0 and at most 1.

    Args:
        node: what the node has, as Ray tells it.
        cpus: of the worker; 0 counts as 1.
        gpus: of the worker.
    """
    of_cpus = (cpus or 1) / max(node.get("CPU", 0), 1)
    of_gpus = gpus / node["GPU"] if node.get("GPU") else 0.0
    return min(1.0, max(of_cpus, of_gpus))
