"""Writes the tables of docs/reference/ from the code: `python docs/_hooks/reference.py`.

The pages' own words stand around regions that this fills, each with the names that it tells of:

    <!-- generated: settings host port -->
    ...
    <!-- end -->

`tests/docs/test_reference.py` fails when a region is not as this would write it, and when a
setting, a metric or an error has its place in none.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from reference_errors import errors_table, starts_table
from reference_metrics import labels_table, metrics_table
from reference_settings import settings_table

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
TABLES: Mapping[str, Callable[[Sequence[str]], str]] = {
    "errors": errors_table,
    "labels": labels_table,
    "metrics": metrics_table,
    "settings": settings_table,
    "starts": starts_table,
}
_REGION = re.compile(
    r"(?P<head><!-- generated: (?P<kind>\w+) (?P<names>[^>]+?) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def filled(page: str) -> str:
    """A page's text with its regions as the code says.

    Raises:
        KeyError: a region of an unknown kind, or with a name that the code doesn't have.
    """
    return _REGION.sub(_fill, page)


def generated_names(page: str, kind: str) -> Iterator[str]:
    """The names that a page's regions of one kind tell of."""
    for region in _REGION.finditer(page):
        if region["kind"] == kind:
            yield from region["names"].split()


def _fill(region: re.Match[str]) -> str:
    table = TABLES[region["kind"]](region["names"].split())
    return f"{region['head']}{table}\n{region['end']}"


def main() -> None:
    """Writes the pages that differ."""
    for path in sorted(PAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            path.write_text(filled(text), encoding="utf-8")
            print(f"wrote {path.relative_to(PAGES.parents[1])}")


if __name__ == "__main__":
    main()
