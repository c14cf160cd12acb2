"""FastAPI, one ONNX Runtime call a request, on FastAPI's own threads.

PEER_WORKERS=2 PEER_PORT=8000 python -m benchmarks.serving.peers.fastapi_app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
import uvicorn
from fastapi import Body, FastAPI, Response

from benchmarks.serving.peers.pipeline import Pipeline


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model, in each worker, and tunes its threads."""
    app.state.pipeline = Pipeline()
    # One request at a time in each worker: its 40 threads would take turns on the same CPU.
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/detect")
def detect(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> Response:
    """`def`: FastAPI calls it on a thread, and the model runs beside the event loop."""
    return Response(app.state.pipeline(image), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.serving.peers.fastapi_app:app",
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        workers=int(os.environ["PEER_WORKERS"]),
        log_level="warning",
        access_log=False,
    )
