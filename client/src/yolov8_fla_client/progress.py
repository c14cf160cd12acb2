"""The bar that shows how far a stream is, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from yolov8_fla_client.results import AnnotatedImage, ImageResult


class Progress(Protocol):
    """What a stream tells of itself."""

    def done(self, result: ImageResult | AnnotatedImage) -> None:
        """One more image is through."""

    def skip(self, images: int) -> None:
        """So many were through before this began."""

    def say(self, line: str) -> None:
        """A line for the person who waits, that must not be torn by the bar."""

    def close(self) -> None:
        """The bar stays as it is."""


class Silent:
    """Nothing is shown but what has to be said."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def done(self, result: ImageResult | AnnotatedImage) -> None:
        """See `Progress`."""

    def skip(self, images: int) -> None:
        """See `Progress`."""

    def say(self, line: str) -> None:
        """See `Progress`."""
        print(line, file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress`."""


class Bar:
    """A bar by tqdm.

    Args:
        total: images in all; None where it is not known.
        always: also where standard error is no terminal.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """

    def __init__(self, total: int | None, *, always: bool = True) -> None:
        from tqdm import tqdm

        disable = False if always else None  # None: where there is no terminal
        self._failed = 0
        self._bar = tqdm(total=total, unit="image", disable=disable, dynamic_ncols=True)

    def done(self, result: ImageResult | AnnotatedImage) -> None:
        """See `Progress`."""
        if result.error is not None:
            self._failed += 1
            self._bar.set_postfix(failed=self._failed, refresh=False)
        self._bar.update()

    def skip(self, images: int) -> None:
        """See `Progress`."""
        self._bar.reset(self._bar.total)
        self._bar.initial = images
        self._bar.n = images

    def say(self, line: str) -> None:
        """See `Progress`."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """See `Progress`."""
        self._bar.close()


@contextmanager
def showing(visible: bool, total: int | None) -> Iterator[Progress]:
    """A bar where it is wanted, for as long as the block lasts."""
    progress: Progress = Bar(total) if visible else Silent()
    try:
        yield progress
    finally:
        progress.close()
