"""Simplifies the graph and checks what is left against the artifact's rules."""

import onnx
import onnxslim

from export.errors import ModelUnsupported

# Slow, not everywhere on a GPU, or not in every runtime that an artifact is meant for.
FORBIDDEN_OPERATORS = frozenset({"Pow", "If", "Loop", "NonMaxSuppression", "Einsum"})


def optimize(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Folds constants and removes what does nothing.

    Raises:
        ModelUnsupported: when an operator remains that an artifact must not hold.
    """
    slim: onnx.ModelProto = onnxslim.slim(graph)
    try:
        onnx.checker.check_model(slim, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelUnsupported(f"the graph is not valid ONNX: {error}") from None
    operators = {node.op_type for node in slim.graph.node}
    foreign = {node.domain for node in slim.graph.node} - {"", "ai.onnx"}
    if forbidden := operators & FORBIDDEN_OPERATORS:
        raise ModelUnsupported(f"the graph holds {', '.join(sorted(forbidden))}")
    if foreign:
        raise ModelUnsupported(f"the graph holds operators of {', '.join(sorted(foreign))}")
    return slim
