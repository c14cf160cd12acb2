"""Silence of the codecs: libjpeg and libpng, inside of OpenCV, write to stderr of broken images.

Such a line says neither which image nor which request, comes as often as a client likes, and does
not fit into a log of JSON. Nobody can ask them for silence, so for the time of decoding the C
library's `stderr` is another one. The descriptor, and what writes to it otherwise, stay: ONNX
Runtime, `faulthandler`, the C library when it ends the process. (A C++ exception that nobody
catches would end the process without its text if another thread decoded in that moment.)
"""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Threads that decode share the variable; it is real again when the last of them is done.
_lock = threading.Lock()


@contextmanager
def codecs_muted() -> Iterator[None]:
    """Throws away what C code prints to `stderr` inside of the block, on any thread.

    Without effect where the C library is not glibc.
    """
    with _lock:
        stderr = _stderr()
        if stderr is not None:
            stderr.mute()
    try:
        yield
    finally:
        if stderr is not None:
            with _lock:
                stderr.unmute()


class _Stderr:
    """The variable `stderr` of the C library; `_lock` is held by whoever uses it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.fopen.restype = ctypes.c_void_p
        self._variable = ctypes.c_void_p.in_dll(library, "stderr")
        self._real = self._variable.value
        self._nowhere = library.fopen(os.fsencode(os.devnull), b"we")
        self._muted = 0

    def mute(self) -> None:
        """Once more."""
        self._muted += 1
        if self._nowhere:  # else no file was left
            self._variable.value = self._nowhere

    def unmute(self) -> None:
        """Once less."""
        self._muted -= 1
        if not self._muted:
            self._variable.value = self._real


@cache
def _stderr() -> _Stderr | None:
    # Elsewhere `stderr` is a constant, or has another name.
    return _Stderr(ctypes.CDLL(None)) if platform.libc_ver()[0] == "glibc" else None
