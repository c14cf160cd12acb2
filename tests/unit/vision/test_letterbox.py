import numpy as np
import pytest
from numpy.typing import NDArray

from server.vision.letterbox import PAD_VALUE, choose_bucket, full_size, letterbox

BUCKETS_640 = ((640, 640), (480, 640), (384, 640), (640, 480), (640, 384))
EVERY_RECTANGLE = tuple(
    {(640, side) for side in range(32, 641, 32)} | {(side, 640) for side in range(32, 641, 32)}
)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    seed = height * 10_000 + width
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def random_sizes(count: int) -> list[tuple[int, int]]:
    """Sizes of all kinds: small, photo-sized, nearly square, thin, and exact ratios."""
    random = np.random.default_rng(3)
    sizes = [(int(h), int(w)) for h, w in random.integers(1, 1500, (count, 2))]
    sizes += [(int(h), int(h) + int(d)) for h, d in random.integers(1, 90, (count // 4, 2))]
    sizes += [(1, 5000), (5000, 1), (1, 1), (640, 640), (480, 640), (360, 640), (1080, 1920)]
    return sizes


@pytest.mark.parametrize(
    "original_hw",
    [(480, 640), (640, 480), (1, 5000), (641, 639), (7, 7), (1201, 2000)],
    ids=["landscape", "portrait", "sliver", "odd", "tiny", "tight"],
)
def test_boxes_survive_the_round_trip(original_hw: tuple[int, int]) -> None:
    height, width = original_hw
    bucket = choose_bucket(original_hw, BUCKETS_640)
    _, placed = letterbox(np.zeros((height, width, 3), np.uint8), bucket, full_hw=(640, 640))
    left, top = placed.pad_left, placed.pad_top
    there = np.array(
        [[left, top, left + placed.resized_hw[1], top + placed.resized_hw[0]]], np.float32
    )
    np.testing.assert_allclose(placed.to_original(there), [[0, 0, width, height]], rtol=1e-6)


def test_boxes_are_clipped_to_the_image() -> None:
    _, placed = letterbox(noise(320, 640), (640, 640))
    boxes = np.array([[-50, 0, 700, 640], [0, 0, 10, 10]], np.float32)
    clipped = placed.to_original(boxes)
    np.testing.assert_array_equal(clipped, [[0, 0, 640, 320], [0, 0, 10, 0]])
    assert clipped.dtype == np.float32


def test_no_boxes_stay_no_boxes() -> None:
    _, placed = letterbox(noise(320, 640), (640, 640))
    assert placed.to_original(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_the_image_is_centred_on_grey() -> None:
    image = noise(320, 640)
    canvas, placed = letterbox(image, (640, 640))
    assert canvas.shape == (640, 640, 3)
    assert canvas.dtype == np.uint8
    assert (placed.pad_top, placed.pad_left, placed.input_hw) == (160, 0, (640, 640))
    np.testing.assert_array_equal(canvas[160:480], image)
    assert (canvas[:160] == PAD_VALUE).all()
    assert (canvas[480:] == PAD_VALUE).all()


def test_the_image_itself_is_not_written_to() -> None:
    image = noise(64, 64)
    canvas, _ = letterbox(image, (64, 64))
    canvas[:] = 0
    np.testing.assert_array_equal(image, noise(64, 64))


@pytest.mark.parametrize(
    ("original_hw", "bucket"),
    [
        ((1080, 1920), (384, 640)),  # 16:9 needs 360, the minimal rectangle
        ((1920, 1080), (640, 384)),
        ((480, 640), (480, 640)),
        ((3024, 4032), (480, 640)),
        ((427, 640), (480, 640)),  # 448 would do; the next bucket that holds it is taken
        ((200, 640), (384, 640)),
        ((500, 500), (640, 640)),
        ((600, 640), (640, 640)),
        ((1, 5000), (384, 640)),
        ((60, 80), (480, 640)),  # enlarged
    ],
)
def test_the_smallest_bucket_that_holds_the_image_at_full_scale_is_chosen(
    original_hw: tuple[int, int], bucket: tuple[int, int]
) -> None:
    assert choose_bucket(original_hw, BUCKETS_640) == bucket
    assert choose_bucket(original_hw, tuple(reversed(BUCKETS_640))) == bucket


def test_every_image_is_held_by_its_bucket_at_the_scale_of_the_largest() -> None:
    for height, width in random_sizes(300):
        bucket = choose_bucket((height, width), BUCKETS_640)
        scaled = letterbox(np.zeros((height, width, 3), np.uint8), bucket, full_hw=(640, 640))[1]
        square = letterbox(np.zeros((height, width, 3), np.uint8), (640, 640))[1]
        assert scaled.resized_hw == square.resized_hw
        assert scaled.resized_hw[0] <= bucket[0]
        assert scaled.resized_hw[1] <= bucket[1]


def test_a_static_model_has_one_bucket_for_all() -> None:
    assert choose_bucket((1080, 1920), [(640, 640)]) == (640, 640)
    assert full_size([(480, 640), (640, 640), (640, 480)]) == (640, 640)


def test_pixels_equal_those_of_ultralytics_in_its_minimal_rectangle() -> None:
    augment = pytest.importorskip("ultralytics.data.augment", reason="ultralytics not installed")
    # As `BasePredictor.pre_transform` builds it for `predict(imgsz=640, rect=True)` on a .pt.
    theirs = augment.LetterBox([640, 640], auto=True, stride=32)
    for height, width in random_sizes(250):
        image = noise(height, width)
        expected = theirs(image=image)
        bucket = choose_bucket((height, width), EVERY_RECTANGLE)
        assert bucket == expected.shape[:2], (height, width)
        canvas, _ = letterbox(image, bucket, full_hw=full_size(EVERY_RECTANGLE))
        np.testing.assert_array_equal(canvas, expected, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("input_hw", [(640, 640), (480, 640), (320, 320), (96, 64)])
def test_pixels_equal_those_of_ultralytics_in_a_fixed_shape(input_hw: tuple[int, int]) -> None:
    augment = pytest.importorskip("ultralytics.data.augment", reason="ultralytics not installed")
    theirs = augment.LetterBox(input_hw, auto=False)
    for height, width in random_sizes(60):
        image = noise(height, width)
        np.testing.assert_array_equal(letterbox(image, input_hw)[0], theirs(image=image))


def test_boxes_return_as_in_ultralytics() -> None:
    ops = pytest.importorskip("ultralytics.utils.ops", reason="ultralytics not installed")
    torch = pytest.importorskip("torch", reason="torch not installed")
    random = np.random.default_rng(8)
    tight = 0
    for height, width in random_sizes(250):
        boxes = random.uniform(-20, 660, (50, 4)).astype(np.float32)
        bucket = choose_bucket((height, width), EVERY_RECTANGLE)
        _, placed = letterbox(np.zeros((height, width, 3), np.uint8), bucket, full_hw=(640, 640))
        scale = min(640 / height, 640 / width)
        if min(bucket[0] / height, bucket[1] / width) < scale:
            # The image was rounded down into the rectangle, and ultralytics infers another
            # scale from the rectangle than it used; ours is the one that was used.
            tight += 1
            continue
        theirs = ops.scale_boxes(bucket, torch.from_numpy(boxes.copy()), (height, width)).numpy()
        np.testing.assert_array_equal(placed.to_original(boxes), theirs)
    assert tight < 20
