"""LitServe: FastAPI before worker processes. PEER_WORKERS says how many, PEER_PORT where.

python -m benchmarks.serving.peers.litserve_app
"""

import os
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Body, Response

from benchmarks.serving.peers.pipeline import Pipeline

ImageBody = Annotated[bytes, Body(media_type="image/jpeg")]


class Detect(litserve.LitAPI):  # type: ignore[misc]  # the package is not where this is checked
    """Bytes in, bytes out: the pipeline makes the JSON."""

    def setup(self, device: Any) -> None:
        """Loads the model, in each worker."""
        self._pipeline = Pipeline()

    def decode_request(self, request: ImageBody) -> bytes:
        """The raw body is the image."""
        return request

    def predict(self, image: bytes) -> bytes:
        """One image: batches bring a CPU nothing."""
        return self._pipeline(image)

    def encode_response(self, output: bytes) -> Response:
        """The pipeline's JSON is the body."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        Detect(),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        timeout=60,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        generate_client_file=False,
        log_level="warning",
    )
