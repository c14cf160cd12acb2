"""What ONNX Runtime really ran, by its own profile: each node of one call and its provider."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

Executed = Counter[tuple[str, str]]  # (provider, operator): how many nodes
COPIES = frozenset({"MemcpyToHost", "MemcpyFromHost"})


def executed(
    model: Path,
    providers: Sequence[tuple[str, Mapping[str, Any]]],
    feeds: Mapping[str, Any],
    folder: Path,
    *,
    fixed: bool = False,
) -> Executed:
    """Runs a model once, in a session of its own.

    Args:
        model: an ONNX file of one input.
        providers: with their options, best first.
        feeds: the input, by its name.
        folder: for the profile.
        fixed: every dimension is that of the input, so that nothing depends on the shape.

    Returns:
        The nodes that ran, copies between devices inside the graph included.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    if fixed:
        ((_, given),) = feeds.items()
        for name, length in zip(dimensions(model), given.shape, strict=True):
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, length)
    session = onnxruntime.InferenceSession(str(model), options, providers=list(providers))
    session.run(None, dict(feeds))
    return nodes_of(json.loads(Path(session.end_profiling()).read_text()))


def dimensions(model: Path) -> Sequence[int | str]:
    """The dimensions of a model's input; a name stands for any length."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape: Sequence[int | str] = session.get_inputs()[0].shape
    return shape


def nodes_of(profile: Sequence[Mapping[str, Any]]) -> Executed:
    """The nodes in a profile."""
    return Counter(
        (each["args"]["provider"], each["args"]["op_name"])
        for each in profile
        if each.get("cat") == "Node" and "provider" in each.get("args", {})
    )
