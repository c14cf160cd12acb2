"""What mkdocs runs while it builds the site: formulas, links out of docs/, languages, search.

`mkdocs.yml` names this file; each function is one of mkdocs' events.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_links import IMAGES, PAGES, OutsideLinks
from site_math import with_mathml
from site_search import segmented

ROOT = Path(__file__).resolve().parents[2]
CHINESE = "zh/"

_links = OutsideLinks(ROOT)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fits links while pages are converted."""
    config.markdown_extensions.append(_links)  # type: ignore[arg-type]  # Markdown takes both
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the repository's own pages, and the images beside them."""
    for path, uri in PAGES.items():
        if (ROOT / path).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for folder in ("weights", "samples"):
        for image in sorted((ROOT / folder).glob("*")):
            if image.suffix in IMAGES:
                uri = f"repository/{folder}/{image.name}"
                files.append(File.generated(config, uri, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tells the links whose they are, and ranks the reference first in searches."""
    _links.page = page.file.src_uri
    if page.file.src_uri.startswith("reference/"):
        page.meta["search"] = {"boost": 4}  # a setting's name is in most guides, too
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes MathML of formulas."""
    return with_mathml(html)


def on_page_context(
    context: dict[str, Any], page: Page, config: MkDocsConfig, nav: object
) -> dict[str, Any]:
    """Offers the page's twin in the other language, or that language's front page."""
    uri = page.file.src_uri
    english = uri.removeprefix(CHINESE)
    there = {each.file.src_uri: each for each in _pages(nav)}
    twins = {
        "en": there.get(english) or there["index.md"],
        "zh": there.get(CHINESE + english) or there.get(CHINESE + "index.md"),
    }
    config.extra["alternate"] = [
        {"name": name, "lang": code, "link": twin.url}
        for code, name in (("en", "English"), ("zh", "中文"))
        if (twin := twins[code])
    ]
    return context


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Says which language a Chinese page is in, for readers that speak it aloud."""
    if page.file.src_uri.startswith(CHINESE):
        return output.replace('<html lang="en"', '<html lang="zh"', 1)
    return output


@event_priority(-50)  # after the index is written (0), before `offline` copies it (-100)
def on_post_build(config: MkDocsConfig) -> None:
    """Makes Chinese pages searchable."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.write_text(segmented(index.read_text(encoding="utf-8")), encoding="utf-8")


def _pages(nav: Any) -> list[Page]:
    pages: list[Page] = nav.pages
    return pages
