"""YOLOv8 with Focused Linear Attention: the module, its blocks, and training with ultralytics."""
