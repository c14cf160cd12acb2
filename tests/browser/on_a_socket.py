"""An ASGI app on a socket of this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.support.serving import LIMIT_S


@contextmanager
def on_a_socket(app: ASGIApp) -> Iterator[str]:
    """Yields the app's URL, with a slash at its end."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)
            assert not thread.is_alive()
