"""Keeps ultralytics from acting on its own."""

import os
from pathlib import Path


def contain_ultralytics() -> None:
    """Sets what ultralytics reads when it is imported; call this before that.

    It would otherwise install packages with pip when it misses one, and write a settings file
    into the home folder. What the user has set stays.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("YOLO_CONFIG_DIR", str(cache / "yolov8-fla"))
