import numpy as np
import pytest
from numpy.typing import NDArray

from server.vision.labels import Label, draw_labels, fitted_text, text_width, written_name

BLUE, RED = (0, 0, 200), (200, 0, 0)
Box = tuple[int, int, int, int]


def label(name: str, box: Box = (10, 50, 60, 90), colour: tuple[int, int, int] = BLUE) -> Label:
    return Label(3, name, 0.914, box, colour)


def area(drawn: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.int64]:
    """x1, y1, x2, y2 around all that has a label's colour."""
    rows, columns = np.nonzero((drawn == colour).all(axis=2))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize(
    "name", ["RBC", "Größe", "Эритроцит", "Αιμοπετάλια", "血小板", "ひらがな", "혈소판", "what?"]
)
def test_names_in_the_fonts_scripts_are_written_as_they_are(name: str) -> None:
    assert written_name(name, 3) == name


@pytest.mark.parametrize("name", ["เกล็ดเลือด", "हिन्दी", "🚗", "טסיות", "صفائح", "", " \n", "\x00"])
def test_names_that_the_font_cannot_write_become_the_class_id(name: str) -> None:
    assert written_name(name, 3) == "#3"


def test_a_name_is_written_on_one_line_without_what_cannot_be_seen() -> None:
    assert written_name(" a\n b\tc\x00\u200e\u202e ", 3) == "a b c"
    assert written_name("e\u0301", 3) == "é"


def test_a_lone_surrogate_does_not_end_the_process() -> None:
    name = written_name("a\ud800", 3)
    image = np.zeros((100, 100, 3), np.uint8)
    draw_labels(image, [label("a\ud800")], 12)
    assert name == "a?"
    assert image.any()


def test_a_image_that_can_not_be_written_on_fails_alone() -> None:
    broken = np.zeros((100, 100, 3), np.uint8)
    broken.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        draw_labels(broken, [label("a")], 12)
    image = np.zeros((100, 100, 3), np.uint8)
    draw_labels(image, [label("a")], 12)
    assert image.any()


def test_a_text_is_shortened_to_fit_score_last() -> None:
    for name in ("Platelets", "血小板血小板血小板", "A class of many words"):
        whole = fitted_text(label(name), 20, 1000)
        assert whole == f"{name} 0.91"
        seen = []
        for width in range(text_width(whole, 20), 0, -1):
            text = fitted_text(label(name), 20, width)
            assert text == "" or text_width(text, 20) <= width
            seen.append(text)
        assert any("…" in text and text.endswith(" 0.91") for text in seen)
        assert any("…" in text and "0.91" not in text for text in seen)
        assert seen[-1] == ""


@pytest.mark.parametrize(
    "box", [(10, 50, 60, 90), (280, 50, 300, 90), (0, 0, 300, 200), (295, 195, 300, 200),
            (0, 190, 20, 200), (0, 0, 3, 3), (120, 0, 180, 200)],
)  # fmt: skip
def test_a_label_is_whole_wherever_its_box_is(box: Box) -> None:
    drawn = np.zeros((200, 300, 3), np.uint8)
    draw_labels(drawn, [label("Platelets", box)], 14)
    x1, y1, x2, y2 = area(drawn, BLUE)
    free = np.zeros((200, 300, 3), np.uint8)
    draw_labels(free, [label("Platelets", (100, 100, 150, 150))], 14)
    fx1, fy1, fx2, fy2 = area(free, BLUE)
    np.testing.assert_array_equal(drawn[y1:y2, x1:x2], free[fy1:fy2, fx1:fx2])
    # It touches its own box, or lies in it.
    assert x1 <= box[2]
    assert x2 >= box[0]
    assert y1 <= box[3]
    assert y2 >= box[1]


def test_labels_of_a_row_of_boxes_at_the_upper_edge_do_not_cover_each_other() -> None:
    colours = [(50, 10, index + 1) for index in range(10)]
    row = [label("RBC", (i * 50, 0, i * 50 + 48, 60), colours[i]) for i in range(10)]
    drawn = np.zeros((200, 500, 3), np.uint8)
    draw_labels(drawn, row, 14)
    areas = [area(drawn, colour) for colour in colours]
    alone = np.zeros((200, 500, 3), np.uint8)
    draw_labels(alone, row[4:5], 14)
    size = area(alone, colours[4])
    for found in areas:
        np.testing.assert_array_equal(found[2:] - found[:2], size[2:] - size[:2])


def test_where_there_is_no_room_the_best_lies_on_top() -> None:
    same = (0, 0, 40, 16)
    drawn = np.zeros((16, 40, 3), np.uint8)
    draw_labels(drawn, [label("RBC", same, RED), label("RBC", same, BLUE)], 14)
    best = np.zeros((16, 40, 3), np.uint8)
    draw_labels(best, [label("RBC", same, RED)], 14)
    covered = (best != 0).any(axis=2)
    np.testing.assert_array_equal(drawn[covered], best[covered])


def test_a_label_rather_covers_nothing_than_another_object() -> None:
    drawn = np.zeros((200, 300, 3), np.uint8)
    small = label("x", (100, 80, 130, 98), RED)  # just above the first box
    draw_labels(drawn, [label("RBC", (100, 100, 200, 150)), small], 14)
    x1, y1, x2, y2 = area(drawn, BLUE)
    assert min(x2, 130) <= max(x1, 100) or min(y2, 98) <= max(y1, 80)
