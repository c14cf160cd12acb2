"""From an artifact to a session of ONNX Runtime to candidates, and where that really runs."""
