"""Hooks for schemathesis: without them no body that it makes up would ever be an image."""

import cv2
import numpy as np
import schemathesis
from hypothesis import strategies as st

_PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
_IMAGES = [
    cv2.imencode(suffix, _PIXELS)[1].tobytes() for suffix in (".jpg", ".png", ".webp", ".bmp")
]


def _cut(image: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(image)).map(lambda end: image[:end])


_bodies = st.one_of(
    st.sampled_from(_IMAGES), st.sampled_from(_IMAGES).flatmap(_cut), st.binary(max_size=200)
)
schemathesis.openapi.media_type("application/octet-stream", _bodies)
schemathesis.openapi.media_type("image/*", _bodies)
