"""A browser, servers, and a page that tells what went wrong in it."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.browser.driver import LIMIT_MS, PROGRAM, chromium, chromium_path
from tests.support.artifacts import tiny_artifact
from tests.support.processes import ServerProcess, ready

expect.set_options(timeout=LIMIT_MS)


@dataclass
class Visit:
    """One page in a browser of its own.

    Attributes:
        page: Playwright's.
        requests: every request that it made, in order.
        expected: what a test provokes of `problems`, as a regular expression.
        problems: what browsers complain of: exceptions, console errors, violations of the policy.
    """

    page: Page
    url: str
    expected: str | None = None
    requests: list[Request] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def detections_asked(self) -> int:
        return sum("/detect" in request.url for request in self.requests)

    def pick(self, *files: Path | dict[str, Any]) -> None:
        # Playwright takes paths or contents, but not both.
        contents = [
            {"name": each.name, "mimeType": "", "buffer": each.read_bytes()}
            if isinstance(each, Path)
            else each
            for each in files
        ]
        self.page.locator("#picker").set_input_files(contents)  # type: ignore[arg-type]

    def done(self, count: int) -> None:
        expect(self.page.locator(".item[data-state=done]")).to_have_count(count)

    def found(self) -> int:
        return int(self.page.locator("#found-count").inner_text().replace(",", ""))

    def rows(self) -> int:
        return self.page.locator("#rows tr").count()

    def set_number(self, control: str, value: float) -> None:
        self.page.locator(f"#{control}").fill(str(value))


Open = Callable[..., Visit]


# By module: Playwright keeps an event loop on this thread while it runs, and tests of other folders
# have their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium_path() is None:
        pytest.skip(f"needs {PROGRAM} on the PATH")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(repo_dir: Path, browser: Browser) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """The default weights, in float32 on any machine."""
    with ready(repo_dir, repo_dir / "weights", "--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="module")
def url(server: tuple[ServerProcess, httpx.Client]) -> str:
    return str(server[1].base_url)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens pages; at the end none of them may have complained, or asked another host."""
    visits: list[Visit] = []
    with ExitStack() as stack:

        def open_page(url: str, expected: str | None = None, **options: Any) -> Visit:
            context = browser.new_context(**({"locale": "en-GB"} | options))
            stack.callback(context.close)
            context.set_default_timeout(LIMIT_MS)
            page = context.new_page()
            visit = Visit(page, url, expected)
            visits.append(visit)
            page.on("request", lambda request: visit.requests.append(request))
            page.on("pageerror", lambda error: visit.problems.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    visit.problems.append(message.text)
                    if message.type in ("error", "warning")
                    else None
                ),
            )
            page.add_init_script(
                "document.addEventListener('securitypolicyviolation', "
                "(event) => console.error('policy: ' + event.violatedDirective))"
            )
            page.goto(url)
            return visit

        yield open_page
        for visit in visits:
            told = visit.expected
            left = [each for each in visit.problems if not (told and re.search(told, each))]
            assert not left, left
            origin = visit.url.split("/", 3)[:3]
            for each in visit.requests:
                if not each.url.startswith(("blob:", "data:")):
                    assert each.url.split("/", 3)[:3] == origin, each.url


@pytest.fixture(scope="module")
def samples(repo_dir: Path) -> list[Path]:
    return sorted((repo_dir / "samples").glob("*.jpg"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few kilobytes whose answers follow from the pixels."""
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")
