import pytest

from export.buckets import buckets
from export.errors import ModelUnsupported


def test_buckets_are_the_square_and_common_ratios_both_ways_round() -> None:
    assert buckets(640, 32) == ((640, 640), (480, 640), (384, 640), (640, 480), (640, 384))


def test_shapes_that_coincide_are_listed_once() -> None:
    assert buckets(32, 32) == ((32, 32),)


@pytest.mark.parametrize("imgsz", [0, -32, 16, 500])
def test_a_size_that_is_no_multiple_of_the_stride_is_named(imgsz: int) -> None:
    with pytest.raises(ModelUnsupported, match=rf"--imgsz {imgsz} .* 32"):
        buckets(imgsz, 32)
