import cv2
import numpy as np
import pytest

from server.annotate import COLOURS_RGB, annotate, encode_picture
from server.postprocess import Detections


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, len(boxes)).astype(np.float32),
        np.arange(len(boxes), dtype=np.int64),
    )


def grey(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_a_box_is_drawn_on_its_edges_in_the_colour_of_its_class() -> None:
    image = grey()
    drawn = annotate(image, detections((50, 60, 150, 160)), ["RBC"])
    for y, x in [(100, 50), (100, 150), (160, 100)]:
        assert tuple(drawn[y, x]) == COLOURS_RGB[0]
    assert (drawn[100:150, 60:140] == 128).all()


def test_the_image_itself_is_not_changed() -> None:
    image = grey()
    annotate(image, detections((50, 60, 150, 160)), ["RBC"])
    assert (image == 128).all()


@pytest.mark.parametrize("hw", [(1, 1), (3, 500), (500, 3), (2000, 1000)])
def test_a_label_is_drawn_whatever_the_size_and_place(hw: tuple[int, int]) -> None:
    height, width = hw
    drawn = annotate(grey(*hw), detections((0, 0, width, height)), ["Platelets"])
    assert drawn.shape == (height, width, 3)
    assert (drawn != 128).any()


def test_no_box_crosses_a_label() -> None:
    best = annotate(grey(), detections((50, 60, 150, 160)), ["RBC", "WBC"])
    # The other box's upper edge runs through the best one's label.
    both = annotate(grey(), detections((50, 60, 150, 160), (10, 55, 250, 190)), ["RBC", "WBC"])
    behind = annotate(grey(), detections((10, 55, 250, 190), (50, 60, 150, 160)), ["WBC", "RBC"])
    for drawn, name in ((both, 0), (behind, 1)):
        label = (best[48:60, 50:88] != 128).any(axis=2)
        assert label.all()
        assert tuple(drawn[48, 50]) == COLOURS_RGB[name]
        assert not (drawn[48:60, 51:88] == COLOURS_RGB[1 - name]).all(axis=2).any()


@pytest.mark.parametrize(
    ("corner_xy", "height"),
    [((290, 100), 200), ((290, 0), 200), ((100, 199), 200), ((299, 199), 200), ((0, 6), 14)],
)
def test_a_label_stays_in_the_picture(corner_xy: tuple[int, int], height: int) -> None:
    def drawn_label(image: np.ndarray) -> np.ndarray:
        text = (image.astype(int).sum(axis=2) > 500) & (image != 128).any(axis=2)
        rows, columns = np.nonzero(text)
        return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]

    whole = annotate(grey(), detections((100, 100, 101, 101)), ["Platelets"])
    drawn = annotate(grey(height), detections((*corner_xy, 300, height)), ["Platelets"])
    np.testing.assert_array_equal(drawn_label(drawn), drawn_label(whole))


def test_without_detections_the_picture_stays_as_it_is() -> None:
    assert (annotate(grey(), detections(), ["RBC"]) == 128).all()


@pytest.mark.parametrize("png", [True, False])
def test_colours_survive_the_encoding(png: bool) -> None:
    image = grey()
    image[..., 0] = 200
    encoded, media_type = encode_picture(image, png=png)
    assert media_type == ("image/png" if png else "image/jpeg")
    back = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert back is not None
    np.testing.assert_allclose(back[100, 100], [200, 128, 128], atol=3)


def test_what_is_too_long_for_a_jpeg_becomes_a_png() -> None:
    encoded, media_type = encode_picture(np.zeros((1, 66_000, 3), np.uint8), png=False)
    assert media_type == "image/png"
    assert encoded.startswith(b"\x89PNG")
