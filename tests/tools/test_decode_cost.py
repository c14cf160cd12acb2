"""The benchmark of the costliest images measures what it says."""

import cv2
import numpy as np

from benchmarks.fuzz.decode_cost import measured, page


def test_an_image_is_measured_in_a_process_of_its_own() -> None:
    # Larger than what a library may keep for the next image.
    png = cv2.imencode(".png", np.zeros((3000, 3000, 3), np.uint8))[1].tobytes()
    cost = measured("PNG, black", png)
    assert (cost.name, cost.pixels, cost.kb) == ("PNG, black", 9_000_000, len(png) / 1024)
    assert cost.cpu_s > 0
    assert 25 < cost.mb < 80  # 27 MB of pixels, and a copy
    (row,) = (line for line in page([cost]).splitlines() if line.startswith("| PNG, black |"))
    assert f"| {cost.kb:,.1f} | 9 |" in row
