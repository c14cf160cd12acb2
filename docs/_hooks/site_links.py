"""Links from pages to files of the repository, made to fit in the site.

Pages link as it works on GitHub: relative to where the page lies in the repository. In the site
such a link goes to a page where the file is one, shows the image where it is one, and is text
otherwise.
"""

import logging
import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

# Files outside docs/ that are pages of the site: path in the repository -> path in the site.
PAGES = {
    "README.zh-CN.md": "zh/index.md",
    "weights/README.md": "project/model-card.md",
    "samples/README.md": "project/samples.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
# Pages of the site that say what these do.
ALIASES = {"README.md": "index.md", "examples/README.md": "examples.md"}
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".svg")
DOCS = "docs"

logger = logging.getLogger("mkdocs.hooks.links")


def in_repository(site_path: str) -> str:
    """Where a page or image of the site lies in the repository."""
    for path, uri in PAGES.items():
        if uri == site_path:
            return path
    if site_path.startswith("repository/"):
        return site_path.removeprefix("repository/")
    return f"{DOCS}/{site_path}"


def in_site(path: str) -> str | None:
    """Where a file of the repository lies in the site; None where the site does not hold it."""
    if path in PAGES:
        return PAGES[path]
    if path in ALIASES:
        return ALIASES[path]
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if path.endswith(IMAGES):
        return f"repository/{path}"
    return None


def fitted(link: str, page: str, root: Path) -> str | None:
    """A link of a page, as it has to be in the site.

    Args:
        link: as written; relative to the page's place in the repository, or a URL, or `#anchor`.
        page: the page's path in the site, such as `zh/start.md`.
        root: the repository.

    Returns:
        The link, relative to the page's place in the site; None where it names a file or folder of
        the repository that the site does not hold.

    Raises:
        FileNotFoundError: it names nothing in the repository.
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return link
    here = posixpath.dirname(in_repository(page))
    path = posixpath.normpath(posixpath.join(here, unquote(parts.path)))
    target = in_site(path)
    if target is None or (root / path).is_dir():
        if not (root / path).exists():
            raise FileNotFoundError(path)
        return None
    # Whether the site has the target is for mkdocs to say.
    relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
    return relative + (f"#{parts.fragment}" if parts.fragment else "")


class OutsideLinks(Extension):
    """Fits the links of one page after the other.

    Args:
        root: the repository.

    Attributes:
        page: the path in the site of the page that is converted; set before each.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.page = ""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # Markdown's name
        """Runs before mkdocs looks at the links, which it does with priority 0."""
        md.treeprocessors.register(_Fit(self), "outside_links", 1)


class _Fit(Treeprocessor):
    def __init__(self, links: OutsideLinks) -> None:
        super().__init__()
        self.links = links

    def run(self, root: Element) -> None:
        for element in root.iter():
            name = {"a": "href", "img": "src"}.get(element.tag)
            link = element.get(name) if name else None
            if name and link:
                self._fit(element, name, link)

    def _fit(self, element: Element, name: str, link: str) -> None:
        try:
            target = fitted(link, self.links.page, self.links.root)
        except FileNotFoundError as missing:
            logger.warning("%s: links to %s, which is not there", self.links.page, missing)
            return
        if target is not None:
            element.set(name, target)
            return
        del element.attrib[name]
        element.tag = "span"
        element.set("class", "repository-file")
        element.set("title", f"In the repository: {link.lstrip('./')}")
