"""What the other tests of this folder stand on: that blocks are found, run and compared."""

from pathlib import Path

import pytest

from tests.docs.blocks import Undeclared, read_blocks
from tests.docs.checkout import Checkout, free_port
from tests.docs.likeness import json_differences, text_differences
from tests.docs.running import BlockFailed, run_page

SHOWN = {"results": [{"class_name": "RBC", "score": 0.97, "box": {"x1": 50.6}}], "version": "a1"}


def written(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Checkout:
    (tmp_path / "folder").mkdir()
    return Checkout(tmp_path / "folder", tmp_path, free_port(), frozenset())


def ran(folder: Path, checkout: Checkout, text: str) -> list[str]:
    return run_page(written(folder, text), "page.md", checkout)


def test_a_block_is_read_with_its_line_and_what_is_declared(tmp_path: Path) -> None:
    page = "# A\n\n<!-- block: run exits 3 -->\n```sh\nexit 3\n```\n"
    (block,) = read_blocks(written(tmp_path, page), "page.md")
    assert (block.line, block.language, block.text) == (4, "sh", "exit 3\n")
    assert (block.kind, block.rest) == ("run", "exits 3")


def test_a_block_in_a_list_loses_its_indentation(tmp_path: Path) -> None:
    page = "- one\n\n  <!-- block: run -->\n  ```sh\n  if true; then\n    ls\n  fi\n  ```\n"
    (block,) = read_blocks(written(tmp_path, page), "page.md")
    assert block.text == "if true; then\n  ls\nfi\n"


@pytest.mark.parametrize(
    "page",
    [
        "```sh\nls\n```\n",
        "<!-- block: run -->\n\n```sh\nls\n```\n",
        "<!-- block: look at it -->\n```sh\nls\n```\n",
    ],
)
def test_a_block_that_nobody_has_declared_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises(Undeclared, match=r"page\.md:\d"):
        read_blocks(written(tmp_path, page), "page.md")


def test_a_command_that_fails_fails_its_page(tmp_path: Path, empty: Checkout) -> None:
    with pytest.raises(BlockFailed, match=r"page\.md:2 ended with 1"):
        ran(tmp_path, empty, "<!-- block: run -->\n```sh\nfalse\necho on\n```\n")


def test_a_command_may_be_meant_to_fail(tmp_path: Path, empty: Checkout) -> None:
    assert ran(tmp_path, empty, "<!-- block: run exits 3 -->\n```sh\nexit 3\n```\n") == []


def test_output_that_differs_fails_its_page(tmp_path: Path, empty: Checkout) -> None:
    page = "<!-- block: run -->\n```sh\necho one\n```\n<!-- block: output -->\n```text\n{}\n```\n"
    assert ran(tmp_path, empty, page.format("one")) == []
    with pytest.raises(BlockFailed, match="not printed: two"):
        ran(tmp_path, empty, page.format("two"))


def test_the_port_of_the_page_is_the_one_that_is_served_here(
    tmp_path: Path, empty: Checkout
) -> None:
    page = "<!-- block: run -->\n```sh\ntest 127.0.0.1:8000 = 127.0.0.1:$YOLO_FLA_PORT\n```\n"
    assert ran(tmp_path, empty, page) == []


def test_a_file_of_the_page_is_there_for_the_next_block(tmp_path: Path, empty: Checkout) -> None:
    page = (
        "<!-- block: file a.yaml -->\n```yaml\nx: 1\n```\n"
        "<!-- block: run -->\n```sh\ngrep 'x: 1' a.yaml\n```\n"
    )
    assert ran(tmp_path, empty, page) == []


def test_a_language_without_a_program_here_is_told(tmp_path: Path, empty: Checkout) -> None:
    page = "<!-- block: run with no-such-program -->\n```python\nprint(1)\n```\n"
    (told,) = ran(tmp_path, empty, page)
    assert told.startswith("page.md:2")


def test_a_page_leaves_nothing_to_the_next(tmp_path: Path, empty: Checkout) -> None:
    page = "<!-- block: run -->\n```sh\ntest ! -e left && touch left\n```\n"
    assert ran(tmp_path, empty, page) == []
    assert ran(tmp_path, empty, page) == []


@pytest.mark.parametrize(
    ("seen", "alike"),
    [
        ({"results": [{"class_name": "RBC", "score": 0.94, "box": {"x1": 52.0}}]}, True),
        ({"results": [{"class_name": "RBC", "score": 0.2, "box": {"x1": 52.0}}]}, False),
        ({"results": [{"class_name": "RBC", "score": 0.94, "box": {"x1": 92.0}}]}, False),
        ({"results": [{"class_name": "WBC", "score": 0.94, "box": {"x1": 52.0}}]}, False),
        ({"results": [{"class_name": "RBC", "score": 0.94, "box": {"left": 52.0}}]}, False),
        ({"results": [{"class_name": "RBC", "score": 0.94}]}, False),
        ({"results": []}, False),
        ({"found": []}, False),
    ],
)
def test_json_is_compared_in_shape_names_and_nearness(seen: dict[str, object], alike: bool) -> None:
    assert (not json_differences(SHOWN, seen | {"version": "b2"})) is alike


def test_an_answer_may_have_more_items_than_are_shown() -> None:
    assert not json_differences([{"id": 2}], [{"id": 70}, {"id": 2}])


def test_whole_numbers_are_equal_or_differ() -> None:
    assert json_differences({"class_id": 2}, {"class_id": 3})


def test_of_timings_only_their_names_and_types_count() -> None:
    assert not json_differences({"timings_ms": {"queue": 0.1}}, {"timings_ms": {"queue": 900.0}})
    assert json_differences({"timings_ms": {"queue": 0.1}}, {"timings_ms": {}})
    assert json_differences({"timings_ms": {"queue": 0.1}}, {"timings_ms": {"queue": None}})


@pytest.mark.parametrize(
    ("shown", "alike"),
    [
        ("took 3.1 s", True),
        ("took  9 s", True),
        ("...\nend", True),
        ("took ...\nend", True),
        ("end\ntook 3 s", False),
        ("took 3 ms", False),
    ],
)
def test_text_is_compared_but_for_numbers_and_what_is_left_out(shown: str, alike: bool) -> None:
    assert (not text_differences(shown, "begin\ntook 12.5 s\nend")) is alike
