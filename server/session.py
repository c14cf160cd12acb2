"""One ONNX Runtime session, and the proof of where it runs."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.artifact import Artifact


class Session:
    """A model that is loaded on one device."""

    provider: str
    device: str

    @classmethod
    def open(
        cls, artifact: Artifact, *, device: str = "auto", intra_op_threads: int | None = None
    ) -> Self:
        """Loads an artifact; raises `ProviderUnavailable`, `ArtifactInvalid`."""
        raise NotImplementedError

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB -> (B, K, 6) float32 candidates."""
        raise NotImplementedError

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Runs every bucket (on a GPU at every batch size) once."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases the model's memory."""
        raise NotImplementedError
