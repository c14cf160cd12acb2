"""ONNX Runtime, loaded late and without its telemetry."""

import os
from typing import Any


def onnxruntime() -> Any:
    """The library; its first use loads it, which takes 0.2 s."""
    # Before the library is loaded: its Linux wheels send telemetry from the first session on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
