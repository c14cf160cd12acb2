"""docs/api.md: every example runs, and what it shows as an answer is one."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from server.api.parameters import NAMES
from server.api.schemas import DetectResponse
from server.http.errors import Problem
from tests.docs.blocks import read_fences
from tests.support.processes import ready

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/api.md"
ADDRESS = "http://127.0.0.1:8000"
KEY = "a-key-of-the-test"
LIMIT_S = 60
HTTP_ERROR = 22  # curl's exit code, with --fail


class Example(NamedTuple):
    """A block of code, and the one behind it on the page."""

    language: str
    code: str
    then: str

    @property
    def needs_key(self) -> bool:
        return "$KEY" in self.code

    @property
    def shows_error(self) -> bool:
        return '"code"' in self.then and '"results"' not in self.then


def blocks() -> list[Example]:
    found = read_fences(ROOT, "docs/api.md")
    after = [each.text if each.language == "json" else "" for each in found[1:]] + [""]
    return [
        Example(each.language, each.text, then) for each, then in zip(found, after, strict=True)
    ]


def of(*languages: str) -> list[pytest.param]:  # type: ignore[valid-type]
    chosen = [each for each in blocks() if each.language in languages]
    assert chosen, f"no example in {languages}"
    return [pytest.param(each, id=f"{i}-{each.language}") for i, each in enumerate(chosen)]


@pytest.fixture(scope="module")
def open_server(repo_dir: Path) -> Iterator[str]:
    # Any page may call it: the browser's example is of another origin.
    with ready(repo_dir, repo_dir / "weights", "--cors-origins", "*") as (_, client):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def locked_server(repo_dir: Path) -> Iterator[str]:
    with ready(repo_dir, repo_dir / "weights", "--api-keys", KEY) as (_, client):
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def folder(repo_dir: Path, tmp_path: Path) -> Path:
    """What the page says that its examples run in."""
    (tmp_path / "samples").symlink_to(repo_dir / "samples")
    # A request that is refused ends the example, as it would not by itself.
    (tmp_path / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"CURL_HOME": str(folder), "KEY": KEY},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def found_on_path(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not on the PATH")
    return path


def servers_have(
    block: Example, open_server: str, request: pytest.FixtureRequest, folder: Path
) -> str:
    """The block's code, at the address of a server that takes it."""
    url = request.getfixturevalue("locked_server") if block.needs_key else open_server
    assert ADDRESS in block.code
    return block.code.replace(ADDRESS, url)


@pytest.mark.slow
@pytest.mark.parametrize("block", of("sh"))
def test_every_command_of_the_page_does_what_the_page_shows(
    block: Example, open_server: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    found_on_path("curl")
    code = servers_have(block, open_server, request, folder)
    done = run(["bash", "-euo", "pipefail", "-c", code], folder)
    if block.shows_error:
        assert done.returncode == HTTP_ERROR, done
        shown, given = json.loads(block.then), json.loads(done.stdout)
        assert shown | {"request_id": ""} == given | {"request_id": ""}
    else:
        assert done.returncode == 0, done
    if "-o annotated" in code:
        assert (folder / "annotated.jpg").read_bytes().startswith(b"\xff\xd8")
        assert (folder / "annotated.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("block", of("python"))
def test_every_python_example_of_the_page_finds_cells(
    block: Example, open_server: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    if "import requests" in block.code:
        pytest.importorskip("requests")
    code = servers_have(block, open_server, request, folder)
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"RBC|objects|smear_1\.jpg \d", done.stdout), done


@pytest.mark.slow
@pytest.mark.parametrize("block", of("js"))
def test_every_javascript_example_of_the_page_finds_cells_in_node(
    block: Example, open_server: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    node = found_on_path("node")
    (folder / "example.mjs").write_text(servers_have(block, open_server, request, folder))
    done = run([node, "example.mjs"], folder)
    assert done.returncode == 0, done.stderr
    assert "RBC" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", of("html"))
def test_the_page_of_another_origin_finds_cells_in_a_browser(
    block: Example, open_server: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = found_on_path("chromium")
    html = servers_have(block, open_server, request, folder)
    with page_server(html) as origin, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(origin)
            page.set_input_files("input", folder / "samples/smear_1.jpg")
            output = page.locator("output", has_text=re.compile(r"\S"))
            assert re.fullmatch(r"\d+ objects", output.inner_text(timeout=1000 * LIMIT_S))
        finally:
            browser.close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers without a line for each request."""

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(handler: type[Quiet]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def page_server(html: str) -> Iterator[str]:
    """Somebody's page: of another origin, as its port is another."""

    class Page(Quiet):
        def do_GET(self) -> None:
            self.answer(200, "text/html; charset=utf-8", html.encode())

    with serving(Page) as url:
        yield url


@contextmanager
def busy_server(refusals: int) -> Iterator[tuple[str, list[int]]]:
    """A server of 503 for some requests, then of answers; and the statuses that it gave."""
    given: list[int] = []

    class Busy(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            given.append(503 if len(given) < refusals else 200)
            self.answer(given[-1], "application/json", b'{"results": [{"detections": []}]}')

    with serving(Busy) as url:
        yield url, given


@pytest.mark.parametrize(("refusals", "code"), [(2, 0), (9, 1)])
def test_the_example_of_coming_again_does_so_and_gives_up_in_the_end(
    refusals: int, code: int, folder: Path
) -> None:
    (again,) = (each for each in blocks() if "Retry-After" in each.code)
    with busy_server(refusals) as (url, given):
        done = run([sys.executable, "-c", again.code.replace(ADDRESS, url)], folder)
    assert done.returncode == code, done.stderr
    assert given == ([503, 503, 200] if code == 0 else [503] * 5)


def test_what_the_page_shows_as_answers_are_answers() -> None:
    shown = [json.loads(each.code) for each in blocks() if each.language == "json"]
    assert len(shown) == 2
    for body in shown:
        (DetectResponse if "results" in body else Problem).model_validate(body)


def test_every_parameter_is_told() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in NAMES if f"| `{name}` |" not in text]
