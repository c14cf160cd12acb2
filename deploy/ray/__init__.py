"""The detector on Ray: `serve` answers over HTTP, `detect_folder` goes through stored images.

`import ray` in here is Ray itself, as `deploy/` is never on `sys.path`.
"""

from importlib.util import find_spec

if find_spec("ray") is None:
    raise ModuleNotFoundError(
        "Ray is not installed: pip install 'yolov8-fla[ray]', in a checkout "
        "pip install -c constraints.txt '.[ray]'"
    )
