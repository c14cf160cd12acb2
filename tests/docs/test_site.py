"""The built documentation: whole, of itself alone, and readable from a folder without a server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Of each, the attributes that have the browser fetch something.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
}
LINKS_ONLY = {"alternate", "canonical", "next", "prev"}


def build_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]


def without_network(command: list[str]) -> list[str] | None:
    """The command in a namespace that has no network; None where that can't be had."""
    alone = ["unshare", "--net"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        return [*alone, *command]
    return None


def built(repo: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=repo,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = build_command(folder)
    done = built(repo_dir, without_network(command) or command)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class References(HTMLParser):
    """What a page fetches and what it links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif not set(given.get("rel", "").split()) & LINKS_ONLY:
            self.fetched += [given[name] for name in FETCHED.get(tag, ()) if name in given]


def pages(site: Path) -> list[Path]:
    return sorted(each for each in site.rglob("*.html") if each.name != "404.html")


def test_a_broken_link_or_anchor_fails_the_build(repo_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("docs", "weights", "samples"):
        shutil.copytree(repo_dir / name, copy / name)
    for name in ("mkdocs.yml", *(each.name for each in repo_dir.glob("*.md"))):
        shutil.copy(repo_dir / name, copy / name)
    page = copy / "docs" / "start.md"
    text = page.read_text(encoding="utf-8")
    for broken in ("[x](no-such-page.md)", "[x](train.md#no-such-anchor)", "[x](../no/such.py)"):
        page.write_text(f"{text}\n{broken}\n", encoding="utf-8")
        done = built(copy, build_command(tmp_path / "broken"))
        assert done.returncode != 0, broken
        assert "start.md" in done.stderr, broken


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    for page in pages(site):
        for target in References(page).fetched:
            parts = urlsplit(target)
            assert not parts.netloc, f"{page.name} fetches {target}"
            assert parts.scheme in ("", "data"), f"{page.name} fetches {target}"
            if parts.path and not parts.scheme:
                assert (page.parent / unquote(parts.path)).exists(), f"{page.name}: {target}"


def test_no_style_fetches_anything_from_another_host(site: Path) -> None:
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "url(http" not in text, style.name
        assert "url(//" not in text, style.name
        assert "@import" not in text, style.name


def test_every_page_is_reached_from_the_first_by_the_navigation(site: Path) -> None:
    first = site / "index.html"
    linked = {
        (first.parent / unquote(urlsplit(link).path)).resolve()
        for link in References(first).links
        if not urlsplit(link).netloc
    }
    assert {page.resolve() for page in pages(site)} <= linked | {first.resolve()}


def test_no_formula_is_left_as_latex(site: Path) -> None:
    formulas = 0
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page.name
        formulas += text.count("<math ")
    assert formulas


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        yield page
        browser.close()


@pytest.mark.parametrize(
    ("query", "title"), [("Retry-After", "Errors"), ("max_queue_images", "Settings")]
)
def test_search_works_from_a_folder(site: Path, browser_page: Page, query: str, title: str) -> None:
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto((site / "index.html").as_uri())
    browser_page.locator(".md-search__input").first.fill(query)
    results = browser_page.locator(".md-search-result__item")
    expect(results.filter(has_text=title).first).to_be_visible()
    assert not [url for url in asked if url.startswith("http")]


def test_chinese_is_found_from_a_folder(site: Path, browser_page: Page) -> None:
    if not (site / "zh").is_dir():
        pytest.skip("there are no Chinese pages")
    browser_page.goto((site / "index.html").as_uri())
    browser_page.locator(".md-search__input").first.fill("导出")
    found = browser_page.locator(".md-search-result__item a[href*='zh/']")
    expect(found.first).to_be_visible()


def test_a_page_leads_to_its_twin_in_the_other_language(site: Path) -> None:
    if not (site / "zh" / "start.html").is_file():
        pytest.skip("there are no Chinese pages")
    assert "zh/start.html" in References(site / "start.html").links
    assert "../start.html" in References(site / "zh" / "start.html").links
    assert '<html lang="zh"' in (site / "zh" / "start.html").read_text(encoding="utf-8")
