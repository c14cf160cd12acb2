"""`python -m server.workers CONTROL RECEIVER MEMORY`: a worker; the engine process starts it."""

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from server.observability.log_output import process_log
from server.workers.messages import Init, decode


def main(arguments: Sequence[str]) -> int:
    """Answers HTTP; the arguments are descriptors that this process has inherited."""
    # A terminal, systemd or an init may send them to all processes of the server: it is the model
    # process that drains, and tells.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    gc.disable()  # as `server.__main__` does
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    log = process_log()
    control_file, receiver, memory = map(int, arguments)
    for file in (control_file, receiver, memory):
        os.set_inheritable(file, False)
    control = socket.socket(fileno=control_file)

    import cv2

    from server.observability.logs import configure_logging
    from server.settings import Settings
    from server.vision import nms
    from server.vision.decode import quiet_codecs
    from server.workers.worker import serve_http

    cv2.setNumThreads(1)  # images are decoded side by side, one thread each
    quiet_codecs()
    nms.load()  # not at the first request
    init, rest = first_message(control)
    settings = Settings.model_validate(init.settings)
    configure_logging(settings.log_format, log, process=init.name)
    try:
        return serve_http(init, settings, control, rest, receiver, memory)
    finally:
        log.close()


def first_message(control: socket.socket) -> tuple[Init, bytes]:
    """Waits for what this worker is to be, and gives also what came behind it."""
    received = b""
    while b"\n" not in received:
        more = control.recv(65536)
        if not more:
            os._exit(1)  # the engine process is gone
        received += more
    line, _, rest = received.partition(b"\n")
    init = decode(line)
    assert isinstance(init, Init)
    control.setblocking(False)
    return init, rest


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # not waiting for a thread that still decodes
