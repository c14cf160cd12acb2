"""A server of HTTP that behaves badly on purpose, and counts which images it took how often."""

import hashlib
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from server.api.multipart import MultipartReader

LIMIT_S = 20
TIMINGS = {"decode": 0, "queue": 0, "inference": 0, "postprocess": 0, "total": 0}


@dataclass(frozen=True)
class Reply:
    """What a request meets instead of an answer.

    Attributes:
        status: of a problem; 0 for a connection that is reset without an answer.
        headers: of the problem.
        hang_until: is waited for before anything is done.
        half_an_answer: the connection ends in the middle of a good answer.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    hang_until: threading.Event | None = None
    half_an_answer: bool = False
    code: str = "queue_full"


# The number of a request, from 0, and its images: None to take it.
Decide = Callable[[int, list[bytes]], Reply | None]


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@dataclass
class Flaky:
    """A running server, and what it has seen."""

    url: str
    decide: Decide
    taken: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    requests: int = 0
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def one_more(self, images: list[bytes]) -> Iterator[Reply | None]:
        with self._lock:
            reply = self.decide(self.requests, images)
            self.requests += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            if reply is None:
                self.sizes.append(len(images))
                self.taken.update(digest(each) for each in images)
        try:
            yield reply
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def flaky(decide: Decide) -> Iterator[Flaky]:
    """Serves on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # headers and body go out together; else each answer takes 40 ms

        def do_GET(self) -> None:
            model = {"version": "v", "metadata": {"name": "m", "class_names": ["RBC"]}}
            self.answer(200, model, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            images = images_of(self.headers["Content-Type"], body)
            with state.one_more(images) as reply:
                if reply is not None and reply.hang_until is not None:
                    reply.hang_until.wait(LIMIT_S)
            # Not counted any more: once it has the answer, the client sends the next.
            if reply is None:
                self.answer(200, found_in(images), {})
            elif reply.half_an_answer:
                self.answer(200, found_in(images), {}, cut=True)
                self.reset()
            elif reply.status == 0:
                self.reset()
            else:
                problem = {"code": reply.code, "detail": "on purpose", "request_id": "r1"}
                self.answer(reply.status, problem, reply.headers)

        def answer(
            self, status: int, body: object, headers: dict[str, str], cut: bool = False
        ) -> None:
            content = json.dumps(body).encode()
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.wfile.flush()

        def reset(self) -> None:
            # Linger of 0 s: the client gets a reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # A client that gave up leaves a broken pipe behind.
        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        state = Flaky(f"http://127.0.0.1:{server.server_address[1]}", decide)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def images_of(content_type: str, body: bytes) -> list[bytes]:
    if not content_type.startswith("multipart/"):
        return [body]
    reader = MultipartReader(content_type, on_file=lambda _: None)
    reader.feed(body)
    return [bytes(part.data) for part in reader.finish()]


def found_in(images: list[bytes]) -> dict[str, object]:
    """An answer that tells each image by its width: its number, from 1."""
    result: dict[str, object] = {
        "filename": None,
        "height": 1,
        "truncated": False,
        "error": None,
        "detections": [],
    }
    results = [result | {"width": int(each.decode().split()[-1])} for each in images]
    return {"model": {"name": "m", "version": "v"}, "results": results, "timings_ms": TIMINGS}
