"""What a GPU trains with, without a model that ultralytics would download to try it."""

import pytest

from model.trainer import mixed_precision


@pytest.mark.parametrize(
    ("amp", "bfloat16", "expected"),
    [
        (True, True, "bf16"),
        (True, False, False),
        (False, True, False),
        ("bf16", False, "bf16"),
    ],
)
def test_the_gpu_is_never_tried_with_a_downloaded_model(
    amp: object, bfloat16: bool, expected: object
) -> None:
    assert mixed_precision(amp, bfloat16=bfloat16) == expected
