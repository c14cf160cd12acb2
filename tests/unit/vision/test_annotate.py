import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from server.vision.annotate import annotate, encode_image
from server.vision.nms import Detections
from server.vision.palette import BASE_RGB, class_colour


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, len(boxes)).astype(np.float32),
        np.arange(len(boxes), dtype=np.int64),
    )


def grey(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def test_a_box_is_drawn_on_its_edges_in_the_colour_of_its_class() -> None:
    image = grey()
    drawn = annotate(image, detections((50, 60, 150, 160)), ["RBC"])
    for y, x in [(100, 50), (100, 150), (160, 100)]:
        assert tuple(drawn[y, x]) == BASE_RGB[0]
    assert (drawn[100:150, 60:140] == 128).all()


@pytest.mark.parametrize("hw", [(8, 8), (32, 32), (13, 500), (500, 30), (2000, 1000), (200, 3000)])
def test_a_label_is_drawn_whatever_the_size_and_place(hw: tuple[int, int]) -> None:
    height, width = hw
    drawn = annotate(grey(*hw), detections((0, 0, width, height)), ["Platelets"])
    assert drawn.shape == (height, width, 3)
    assert (drawn != 128).any()


@pytest.mark.parametrize("hw", [(1, 1), (3, 500), (500, 3)])
def test_where_no_letter_fits_the_box_is_drawn(hw: tuple[int, int]) -> None:
    height, width = hw
    drawn = annotate(grey(*hw), detections((0, 0, width, height)), ["Platelets"])
    assert (drawn == BASE_RGB[0]).all(axis=2).any()


def test_no_box_crosses_a_label() -> None:
    # The second box's lines run through every place that the first one's label can take.
    drawn = annotate(grey(), detections((0, 0, 300, 200), (5, 5, 290, 190)), ["RBC", "WBC"])
    labels = [drawn[2:13, 2:25], drawn[2:13, -25:-2], drawn[-13:-2, 2:25], drawn[-13:-2, -25:-2]]
    whole = [area for area in labels if (area == BASE_RGB[0]).all(axis=2).mean() > 0.3]
    assert len(whole) == 1
    assert not (whole[0] == BASE_RGB[1]).all(axis=2).any()


def test_lines_and_text_grow_with_the_image() -> None:
    small, large = (
        annotate(
            grey(side, side), detections((0.3 * side, 0.3 * side, 0.7 * side, 0.7 * side)), ["x"]
        )
        for side in (1000, 4000)
    )

    def widths(drawn: NDArray[np.uint8]) -> int:
        middle = drawn[len(drawn) // 2, : len(drawn) // 2]
        return int((middle != 128).any(axis=1).sum())

    assert widths(large) >= 2 * widths(small)
    # The share of the image that is drawn stays about the same.
    shares = [(drawn != 128).any(axis=2).mean() for drawn in (small, large)]
    assert shares[0] == pytest.approx(shares[1], rel=0.6)


def test_the_line_of_a_tiny_box_leaves_what_is_in_it() -> None:
    drawn = annotate(grey(3000, 3000), detections((1500, 1500, 1512, 1512)), ["x"])
    assert (drawn[1502:1511, 1502:1511] == 128).all()


def test_a_line_has_an_edge_that_shows_on_its_own_colour() -> None:
    image = np.full((1000, 1000, 3), BASE_RGB[0], np.uint8)
    drawn = annotate(image, detections((300, 300, 700, 700)), ["x"])
    assert (drawn[500] != BASE_RGB[0]).any()


def test_many_classes_and_detections_are_drawn_in_their_colours() -> None:
    count = 300
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1800, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 190, (count, 2))])
    classes = rng.integers(0, 80, count)
    found = Detections(
        boxes.astype(np.float32), np.linspace(1, 0.2, count, dtype=np.float32), classes
    )
    drawn = annotate(grey(2000, 2000), found, [f"class {i}" for i in range(80)])
    for class_id in np.unique(classes):
        assert (drawn == class_colour(int(class_id))).all(axis=2).any()


@pytest.mark.parametrize("edge", [np.inf, -np.inf, 1e30])
def test_a_box_far_outside_is_drawn_as_far_as_it_is_inside(edge: float) -> None:
    box = (20, 20, edge, edge) if edge > 0 else (edge, edge, 100, 100)
    drawn = annotate(grey(), detections(box), ["x"])
    assert (drawn[:, :] == BASE_RGB[0]).all(axis=2).any()


def test_without_detections_the_image_stays_as_it_is() -> None:
    assert (annotate(grey(), detections(), ["RBC"]) == 128).all()


@pytest.mark.parametrize("png", [True, False])
def test_colours_survive_the_encoding(png: bool) -> None:
    image = grey()
    image[..., 0] = 200
    encoded, media_type = encode_image(image, png=png)
    assert media_type == ("image/png" if png else "image/jpeg")
    back = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert back is not None
    np.testing.assert_allclose(back[100, 100], [200, 128, 128], atol=3)


def test_what_is_too_long_for_a_jpeg_becomes_a_png() -> None:
    encoded, media_type = encode_image(np.zeros((1, 66_000, 3), np.uint8), png=False)
    assert media_type == "image/png"
    assert encoded.startswith(b"\x89PNG")
