"""`python -m server`: settings, model, app, HTTP server; ends with 0, or says in one line why not.

`python -m server doctor` says what the machine has for it.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from server.errors import DeploymentError
from server.observability.log_output import LogOutput, process_log

EXIT_DEPLOYMENT = 2  # the server could not start as it was deployed
PROG = "python -m server"


def run(arguments: Sequence[str], prog: str = PROG) -> NoReturn:
    """Serves until a signal comes, and ends the process with the exit code."""
    code = main(arguments, prog)
    logging.shutdown()
    if sys.stdout:
        with suppress(OSError):  # whoever read it has seen enough, or the disk is full
            sys.stdout.flush()  # os._exit does not
    # Not sys.exit(): it would wait for an inference that never returns.
    os._exit(code)


def main(arguments: Sequence[str], prog: str = PROG) -> int:
    """Serves until a signal comes; returns the exit code.

    Args:
        arguments: the server's flags, or `doctor` and its flags.
        prog: what help names the program.
    """
    if arguments[:1] == ["doctor"]:
        from server.doctor.command import main as healthy

        return 0 if healthy(arguments[1:], os.environ, f"{prog} doctor") else EXIT_DEPLOYMENT
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can reload; else it would end
    for each in (signal.SIGINT, signal.SIGTERM):  # until the server can drain
        signal.signal(each, leave)
    log = process_log()
    try:
        return start(arguments, log, prog)
    except DeploymentError as error:
        log.write(f"error: {error}\n")
        return EXIT_DEPLOYMENT
    finally:
        log.close()


def leave(sig: int, frame: FrameType | None) -> None:
    """Ends the process at once, as long as there is nothing to drain.

    A container's first process would not even notice SIGTERM without a handler. Raising instead
    would break off an import, and wait for the model that is being loaded.
    """
    process_log().close()
    os._exit(0)


def start(arguments: Sequence[str], log: LogOutput, prog: str) -> int:
    """Loads the model on a thread while the web framework is imported, then serves.

    Most of the start is imports (0.6 s of CPU time), and most of the rest the model (0.4 s). One
    holds Python's lock and the other does not, so they go side by side. Hence the imports in here,
    in the order in which the start needs them.

    Raises:
        DeploymentError: the server can't start as it was deployed.
    """
    # What is imported stays. Looking for garbage among it took 0.1 s; `serve` turns it on again.
    gc.disable()
    # numpy's and OpenCV's: a thread for each CPU, which begin with waiting busily. No matrix is
    # multiplied there.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server.observability.logs import configure_logging
    from server.settings import Settings

    settings = Settings.load(arguments, os.environ, prog)
    several = settings.http_workers > 1
    configure_logging(settings.log_format, log, process="model" if several else None)

    import cv2

    from server.serving.local_model import Loader
    from server.vision.decode import quiet_codecs

    cv2.setNumThreads(1)  # images are decoded side by side, one thread each
    quiet_codecs()
    loader = Loader(settings)

    if several:
        from server.workers.engine_process import serve_with_workers

        return serve_with_workers(settings, loader)
    from server.run import serve

    return serve(settings, loader)


if __name__ == "__main__":
    run(sys.argv[1:])
