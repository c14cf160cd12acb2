"""What a user can call, by HTTP or on the command line, is on some page."""

import re
from pathlib import Path

import pytest

from server.command import COMMANDS as SCRIPT_COMMANDS
from tests.support.artifacts import tiny_artifact
from tests.support.serving import served

# Not for users: what the pages at / and /docs are made of.
ASSETS = re.compile(r"/docs/.+|/assets?/.*|/page/.*|/samples?/.*")


@pytest.fixture(scope="module")
def pages(repo_dir: Path) -> str:
    texts = [each.read_text(encoding="utf-8") for each in repo_dir.glob("docs/**/*.md")]
    return "\n".join(texts)


@pytest.mark.anyio
async def test_every_route_is_on_a_page(pages: str, tmp_path: Path) -> None:
    async with served(tiny_artifact(tmp_path / "tiny.onnx")) as running:
        document = (await running.client.get("/openapi.json")).json()
        paths = set(document["paths"])
        assert "/detect" in paths
    missing = [
        path
        for path in sorted(paths | {"/", "/metrics", "/docs", "/openapi.json"})
        if not ASSETS.fullmatch(path) and not re.search(_as_written(path), pages)
    ]
    assert not missing, "no page of docs/ has these routes"


def _as_written(path: str) -> str:
    """A pattern for a route with its parameters filled in or named, as `/v2/models/NAME`."""
    return re.sub(r"\\\{\w+\\\}", "[^/ `]+", re.escape(path)) + r"(?![\w/])"


def test_the_page_of_commands_has_those_of_the_script(repo_dir: Path) -> None:
    page = (repo_dir / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `yolov8-fla ([a-z]+)` \| `python -m ([a-z ]+)` \|", page, re.MULTILINE)
    assert dict(rows) == {name: module for name, (module, _) in SCRIPT_COMMANDS.items()}
