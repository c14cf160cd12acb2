"""Results as files: what `yolov8-fla-client detect` writes."""
