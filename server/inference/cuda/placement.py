"""The proof that a GPU does the work of a session, by what ONNX Runtime made of the graph."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from server.errors import ProviderUnavailable
from server.inference.artifact import operators
from server.inference.devices import CPU, INSTALL_GPU

# Where the time goes, and what would take the features through the CPU's memory.
_HEAVY_OPERATORS = frozenset(
    {
        *("Conv", "FusedConv", "QLinearConv", "ConvInteger", "ConvTranspose"),
        *("Gemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul"),
        *("TopK", "Resize", "Upsample", "MaxPool", "AveragePool", "Sigmoid", "QuickGelu"),
        *("Softmax", "GatherElements", "ArgMax", "ReduceMax"),
    }
)
# What works shapes out: numbers that the CPU needs in order to start the GPU's kernels. ONNX
# Runtime 1.31.1 leaves 51 of these to the CPU of the default weights' 436 nodes.
_SHAPE_OPERATORS = frozenset(
    {
        *("Shape", "Size", "Gather", "Slice", "Concat", "Split", "Cast", "Unsqueeze", "Squeeze"),
        *("Reshape", "Min", "Max", "Equal", "Where", "Add", "Sub", "Mul", "Div", "Mod", "Floor"),
        *("Ceil", "Range", "ConstantOfShape", "Expand", "ReduceProd", "Identity"),
    }
)
TO_CPU, TO_GPU = "MemcpyToHost", "MemcpyFromHost"

_log = logging.getLogger(__name__)


class Node(NamedTuple):
    """One node of the graph, before nodes were fused."""

    name: str
    operator: str


class Placement(NamedTuple):
    """Where a session's nodes are.

    Attributes:
        nodes: by the provider that each was given to.
        copies: the copies between GPU and CPU inside the graph, by `TO_CPU` and `TO_GPU`; those of
            the input and the output are not among them.
    """

    nodes: Mapping[str, Sequence[Node]]
    copies: Mapping[str, int]


def refuse_unless_on_gpu(placement: Placement, provider: str, gpu: int, *, fixed: bool) -> None:
    """Refuses a session of which a GPU does not do the work.

    Args:
        placement: of its nodes.
        provider: that was asked for.
        gpu: its number.
        fixed: its shapes are, so that there is no shape left to be worked out on the CPU.

    Raises:
        ProviderUnavailable: the GPU does not do all that it should; what, is said.
    """
    on_cpu = Counter(node.operator for node in placement.nodes.get(CPU, ()))
    heavy = sorted(_HEAVY_OPERATORS & on_cpu.keys())
    prefix = f"{provider} was asked for on GPU {gpu}, but ONNX Runtime"
    if not placement.nodes.get(provider):
        raise ProviderUnavailable(
            f"{prefix} runs the model on the CPU; it needs driver R580 or newer, CUDA 13 and "
            f"cuDNN 9 (`python -m server doctor` says what is missing): {INSTALL_GPU}"
        )
    if heavy or (fixed and on_cpu):
        raise ProviderUnavailable(f"{prefix} runs {_listed(on_cpu, heavy)} of it on the CPU")
    if placement.copies.get(TO_CPU) or (fixed and placement.copies):
        raise ProviderUnavailable(
            f"{prefix} copies {sum(placement.copies.values())} values between GPU and CPU in the "
            "middle of each call"
        )
    unusual = on_cpu.keys() - _SHAPE_OPERATORS
    if unusual:
        _log.warning("beside shape arithmetic, the CPU runs %s", _listed(on_cpu, unusual))


def _listed(counts: Mapping[str, int], operators: Iterable[str]) -> str:
    return ", ".join(f"{counts[each]} {each}" for each in sorted(operators or counts))


def nodes_by_provider(session: Any) -> dict[str, tuple[Node, ...]]:
    """The nodes of an ONNX Runtime session by the provider that each was given to."""
    nodes: dict[str, tuple[Node, ...]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found = tuple(Node(node.name, node.op_type) for node in subgraph.get_nodes())
        nodes[subgraph.ep_name] = nodes.get(subgraph.ep_name, ()) + found
    return nodes


@contextmanager
def copies_counted(options: Any) -> Iterator[dict[str, int]]:
    """Counts the copies inside the graph of the session that is loaded with these options.

    ONNX Runtime tells them only in the optimised model that it can write: it does, into memory.

    Args:
        options: of the session; a file for the optimised model is set in them.

    Yields:
        `Placement.copies`; empty until the end of the block, which loads the session.
    """
    copies: dict[str, int] = {}
    descriptor = os.memfd_create("optimised")
    try:
        options.optimized_model_filepath = f"/proc/self/fd/{descriptor}"
        yield copies
        with open(descriptor, "rb", closefd=False) as file:
            counted = Counter(operators(file.read()))
        copies.update({each: counted[each] for each in (TO_CPU, TO_GPU) if counted[each]})
    finally:
        os.close(descriptor)
