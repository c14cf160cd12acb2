"""Security headers, pages and CORS: what a browser is told."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from server.api import ui
from server.api.ui import page_policy
from tests.support.artifacts import tiny_artifact
from tests.support.serving import Served, one_cell, served

pytestmark = pytest.mark.anyio
ORIGIN = "https://shop.example"


async def every_kind_of_answer(client: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    yield await client.post("/detect", content=one_cell())
    yield await client.post("/detect", content=one_cell(), params={"format": "image"})
    yield await client.post("/detect", content=b"no image")
    for path in ("/", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/model", "/metrics"):
        yield await client.get(path)
    for path in ("/page/main.js", "/page/style.css", "/samples", "/samples/none.jpg"):
        yield await client.get(path)
    yield await client.get("/nothing")
    yield await client.get("/detect")
    yield await client.post("/model/reload")


async def test_every_answer_says_what_a_browser_may_do_with_it(running: Served) -> None:
    async for answer in every_kind_of_answer(running.client):
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff", answer.url
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        assert len(headers["x-request-id"]) > 0
        if answer.url.path == "/" or answer.url.path.startswith("/page/"):
            assert headers["cache-control"] == "no-cache"
        elif not answer.url.path.startswith("/docs/"):
            assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control")]


class Loads(HTMLParser):
    """What a page loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        # A handler or a style in an attribute has no hash, so the policy forbids it.
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        if tag in ("script", "img", "iframe"):
            self.urls.append(attributes.get("src") or "")
        if tag == "link":
            self.urls.append(attributes.get("href") or "")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_loads_nothing_from_elsewhere(running: Served, path: str) -> None:
    page = await running.client.get(path)
    loads = Loads()
    loads.feed(page.text)
    policy = page.headers["content-security-policy"]
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]
    assert "'unsafe-eval'" not in policy
    assert not re.search(r"https?:", policy)
    assert set(re.findall(r"'sha256-[^']+'", page_policy(page.text))) == set(
        re.findall(r"'sha256-[^']+'", policy)
    )
    for url in filter(None, loads.urls):
        assert not url.startswith(("http:", "https:", "//"))
        assert (await running.client.get("/" + url)).status_code == 200


async def test_the_page_runs_only_files_of_this_server(running: Served) -> None:
    page = await running.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "sha256" not in policy
    assert "camera=(self)" in page.headers["permissions-policy"]
    assert "microphone=()" in page.headers["permissions-policy"]
    assert not re.search(r"<script(?![^>]* src=)", page.text)
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for file in ui.PAGE.iterdir():
        answer = await running.client.get(f"/page/{file.name}")
        if file.suffix not in types:  # the page itself, which is at /, and a licence
            assert answer.status_code == 404
            continue
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"].startswith(types[file.suffix])


async def test_a_browser_that_has_a_file_is_told_whether_it_still_counts(running: Served) -> None:
    first = await running.client.get("/page/main.js")
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await running.client.get("/page/main.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["cache-control"] == "no-cache"
    other = await running.client.get("/page/main.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200
    assert (await running.client.get("/page/style.css")).headers["etag"] != tag


async def test_who_looks_whether_the_page_is_there_may_ask_for_its_headers(
    running: Served,
) -> None:
    for path in ("/", "/page/main.js"):
        whole, head = [await ask(path) for ask in (running.client.get, running.client.head)]
        assert head.status_code == 200
        for name in ("content-length", "content-type", "etag"):
            assert head.headers[name] == whole.headers[name]


@pytest.fixture
def beside_samples(tmp_path: Path) -> Path:
    """A model beside a folder `samples`, and an image that is none of them."""
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "b c.png").write_bytes(one_cell())
    (folder / "notes.txt").write_text("none")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tiny_artifact(tmp_path / "model.onnx")


async def test_samples_are_those_that_lay_beside_the_model(beside_samples: Path) -> None:
    async with served(beside_samples, api_keys="key") as running:
        late = beside_samples.parent / "samples" / "late.png"
        late.write_bytes(one_cell())
        get = running.client.get
        assert (await get("/samples")).status_code == 401
        running.client.headers["x-api-key"] = "key"
        assert (await get("/samples")).json() == ["b c.png"]
        sample = await get("/samples/b%20c.png")
        assert sample.content == one_cell()
        assert sample.headers["content-type"] == "image/png"
        assert sample.headers["content-length"] == str(len(one_cell()))
        for name in (
            "late.png",
            "notes.txt",
            "..%2Fsecret.png",
            "%2E%2E/secret.png",
            "../secret.png",
        ):
            refused = await get(f"/samples/{name}")
            assert refused.status_code == 404, name
            assert refused.headers["content-type"] == "application/problem+json"


def test_a_policy_names_what_stands_in_the_page() -> None:
    policy = page_policy("<style>a{}</style><script src='x'></script><script>run()</script>")
    # printf 'run()' | openssl dgst -sha256 -binary | base64
    assert "script-src 'self' 'sha256-AvyuiL0SD1mVY3NNxR+V2uo+lhk6RMFrytWmRt6CrJQ='" in policy
    assert policy.count("sha256-") == 2


async def test_another_origin_is_let_in_only_when_configured(artifact: Path) -> None:
    ask = {"origin": ORIGIN, "access-control-request-method": "POST"}
    wants = {"access-control-request-headers": "authorization, content-type"}
    async with served(artifact, cors_origins=ORIGIN, api_keys="secret") as running:
        preflight = await running.client.options("/detect", headers=ask | wants)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in preflight.headers
        refused = await running.client.post("/detect", headers={"origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        exposed = refused.headers["access-control-expose-headers"].lower()
        assert {"x-request-id", "retry-after", "server-timing"} <= set(exposed.split(", "))
        other = await running.client.options(
            "/detect", headers=ask | wants | {"origin": "https://other.example"}
        )
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
