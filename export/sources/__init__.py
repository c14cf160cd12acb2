"""What can be exported: checkpoints, parameters with a layer table, ONNX files."""
