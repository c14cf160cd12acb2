"""The detector on Ray: `serve` answers over HTTP, `detect_folder` goes through stored images.

`import ray` in here is Ray itself, as `server/` is never on `sys.path`.
"""

from importlib.util import find_spec

RAY_MISSING = (
    "error: Ray is not installed: pip install 'yolov8-fla[ray]', in a checkout "
    "pip install -c constraints.txt -e '.[ray]'"
)


def ray_is_there() -> bool:
    """Whether Ray is installed; the commands end with `RAY_MISSING` without it."""
    return find_spec("ray") is not None
