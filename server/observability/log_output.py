"""Standard error of the process: log lines wait in a bounded queue for a thread that writes them.

A disk that is full, a pipe that nobody reads or that is closed then costs lines, and nothing else.
"""

import fcntl
import os
import select
import threading
from collections import deque
from contextlib import suppress
from functools import cache

STDERR = 2
MAX_QUEUED_BYTES = 2**20  # some 4,000 lines
CLOSE_S = 1.0  # in which the lines of before the end are written


class LogOutput:
    """Writes lines to a file on a thread of its own; as a text stream, what loggers need of one.

    Nothing here raises or waits for the file, but `close`, which waits for `CLOSE_S` at most.

    Args:
        file: the descriptor to write to.
        max_queued_bytes: that may wait; further lines are dropped.

    Attributes:
        file: as given.
        dropped: lines that were not written: too many waited, or the file could not take them.
    """

    def __init__(self, file: int, *, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.file = file
        self.dropped = 0
        self._max_queued_bytes = max_queued_bytes
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        # Reentrant: a signal handler may write, or close, in the middle of a write.
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._torn = False  # the last line that was written has no end
        self._writer: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Queues whole lines, with their ends."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._closed or self._queued_bytes + len(line) > self._max_queued_bytes:
                self.dropped += line.count(b"\n")
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            if self._writer is None:
                self._start()
            self._changed.notify()

    def flush(self) -> None:
        """Nothing: the thread writes as soon as it can."""

    def isatty(self) -> bool:
        """Whether the file is a terminal."""
        return os.isatty(self.file)

    def close(self) -> None:
        """Writes what waits, for `CLOSE_S` at most, and drops what comes later."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join(CLOSE_S)

    def _start(self) -> None:
        writer = threading.Thread(target=self._write_all, name="log", daemon=True)
        with suppress(RuntimeError):  # no thread is left; the next line may find one
            writer.start()
            self._writer = writer

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._closed:
                        return
                    self._changed.wait()
                lines = self._next_lines()
            self._write_out(lines)

    def _next_lines(self) -> bytes:
        """As many as a pipe takes in one piece: other processes may write to it, too."""
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= select.PIPE_BUF:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        self._queued_bytes -= size
        return b"".join(lines)

    def _write_out(self, lines: bytes) -> None:
        rest = b"\n" + lines if self._torn else lines
        written = b""
        try:
            while rest:
                try:
                    count = os.write(self.file, rest)
                except BlockingIOError:  # whoever started the server made it so
                    select.select([], [self.file], [])
                    continue
                written, rest = rest[:count], rest[count:]
            self._torn = False
        except (OSError, ValueError):
            if written:
                self._torn = not written.endswith(b"\n")
            with self._changed:
                self.dropped += min(rest.count(b"\n"), lines.count(b"\n"))


@cache
def process_log() -> LogOutput:
    """The one of this process; writes to what standard error is at the first call."""
    try:
        file = fcntl.fcntl(STDERR, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:  # it is closed: else the first socket would be it
        null = os.open(os.devnull, os.O_WRONLY)
        file = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(null, STDERR)
        if null != STDERR:
            os.close(null)
    return LogOutput(file)
