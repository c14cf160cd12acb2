"""What every test starts from: an environment of its own, and the shared data if any."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

# Libraries read these at import, so they are set before any test module loads. Processes that tests
# start inherit them.
_scratch = tempfile.TemporaryDirectory(prefix="yolov8-fla-tests-", ignore_cleanup_errors=True)
os.environ |= {
    "MPLCONFIGDIR": _scratch.name,
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_AUTH_MODE": "disabled",  # or Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_CONFIG_DIR": _scratch.name,
    "YOLO_OFFLINE": "true",
}
# A developer's own settings would change what the tests see.
for name in [name for name in os.environ if name.upper().startswith("YOLO_FLA_")]:
    del os.environ[name]

# A shell's background job ignores Ctrl-C, and so would each process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """The root of this checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout: golden tensors, checkpoints, data sets."""
    shared = REPO.parent / "shared"
    if not (shared / "golden").is_dir():
        pytest.skip("needs ../shared (golden tensors, checkpoints, data sets) beside the checkout")
    return shared
