"""mosec: an HTTP server in Rust before worker processes. PEER_WORKERS says how many.

python -m benchmarks.serving.peers.mosec_app --port PORT
"""

import os

from mosec import Server, Worker  # type: ignore[import-not-found]

from benchmarks.serving.peers.pipeline import Pipeline


class Detect(Worker):  # type: ignore[misc]  # the package is not where this is checked
    """Bytes in, bytes out: the pipeline makes the JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._pipeline = Pipeline()

    def deserialize(self, data: bytes) -> bytes:
        """The raw body is the image."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """The pipeline's JSON is the body."""
        return data

    def forward(self, data: bytes) -> bytes:
        """One image: batches bring a CPU nothing."""
        return self._pipeline(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Detect, num=int(os.environ["PEER_WORKERS"]))
    server.run()
