"""Memory for copies to a GPU, where there is no GPU: an ordinary array, and a warning."""

import logging

import numpy as np
import pytest

from server.inference.cuda.graphs import pinned_array


@pytest.mark.parametrize(
    ("library", "reason"),
    [("libcudart_of_nobody.so.13", "cannot open"), ("libc.so.6", "undefined symbol")],
)
def test_without_cuda_the_array_is_an_ordinary_one_and_that_is_said(
    library: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="server.inference.cuda.graphs"):
        array = pinned_array((2, 4, 6, 3), library)
    assert array.shape == (2, 4, 6, 3)
    assert array.dtype == np.uint8
    array[:] = 7  # it can be written
    (record,) = caplog.records
    assert "no pinned memory of 144 bytes" in record.getMessage()
    assert reason in record.getMessage()
