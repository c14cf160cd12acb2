"""Chromium, driven by Playwright: what tests and screenshots of the page have in common."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PROGRAM = "chromium"
# As root and in containers Chromium's own sandbox does not start. The camera is a test image.
ARGUMENTS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
)
LIMIT_MS = 20_000


def chromium_path() -> str | None:
    """Where Chromium is; None where it is not on the PATH."""
    return shutil.which(PROGRAM)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium; a context with the permission `camera` has one, others are refused."""
    path = chromium_path()
    assert path is not None, f"{PROGRAM} is not on the PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
