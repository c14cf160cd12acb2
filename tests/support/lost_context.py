"""A server whose CUDA context is really lost, in a process of its own.

    python -m tests.support.lost_context process METHOD FLAGS...
    python -m tests.support.lost_context app METHOD FLAGS...
    python -m tests.support.lost_context engine METHOD DEVICE CALLS

`process` is `python -m server FLAGS`, which loses the context at SIGUSR1. `app` runs the app
without a port and prints as JSON what it answers before and afterwards: a process that ends gives
no time to ask for its health. `engine` is a model alone, with one way of making calls, and prints
what its calls give, and how the one after the loss ends.

METHOD is "illegal-access": a kernel writes to address 0, after which every call of CUDA in this
process fails, as a fault in a kernel leaves it; "reset": the context is destroyed, with all that is
in it; or, to try this on a CPU, "rehearse": every inference fails.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx

from server.__main__ import main as serve
from server.api.app import create_app
from server.errors import InferenceFailed, ServerError
from server.http.state import state_of
from server.inference.engine import Engine
from server.inference.repository import load_model
from server.inference.session import Session
from server.settings import Settings
from tests.support.gpu_sessions import CALLS, Calls
from tests.support.sample_images import REPO, batch_of

LIMIT_S = 120
POISON = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry poison()
{
    .reg .u32 %r<2>;
    .reg .u64 %rd<2>;
    mov.u64 %rd1, 0;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cuda() -> Callable[..., None]:
    """Calls functions of the driver on GPU 0, in the context that ONNX Runtime uses."""
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        status = getattr(driver, name)(*arguments)
        say(f"{name} gave {status}")
        if status:
            raise RuntimeError(f"{name} failed: {status}")

    call("cuInit", 0)
    return call


def illegal_access() -> None:
    call = cuda()
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(POISON))
    call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"poison"))
    one = ctypes.c_uint(1)
    nothing = ctypes.c_void_p()
    sizes = (*[one] * 6, ctypes.c_uint(0))
    call("cuLaunchKernel", function, *sizes, nothing, nothing, nothing)
    try:
        call("cuCtxSynchronize")
    except RuntimeError as error:
        say(f"lost: {error}")
    else:
        raise RuntimeError("the context stands a write to address 0")


def reset() -> None:
    call = cuda()
    call("cuDevicePrimaryCtxReset_v2", 0)
    say("lost: the context is destroyed")


def rehearse() -> None:
    def run(self: Session, images: object) -> None:
        raise InferenceFailed("rehearsed") from RuntimeError("rehearsed")

    Session.run = run  # type: ignore[method-assign, assignment]  # a CPU cannot be lost
    say("lost: in a rehearsal")


METHODS = {"illegal-access": illegal_access, "reset": reset, "rehearse": rehearse}


async def answers(flags: list[str], lose: Callable[[], None]) -> dict[str, object]:
    """What the app answers before and after, without a port and without an end of the process."""
    app = create_app(Settings.load(flags, os.environ))
    service = state_of(app).service
    image = (REPO / "samples" / "smear_1.jpg").read_bytes()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test", timeout=LIMIT_S
            )
        )
        async with asyncio.timeout(LIMIT_S):
            while service.model.state == "starting":  # noqa: ASYNC110  # its state has no event
                await asyncio.sleep(0.05)
        health = (await client.get("/health")).json()
        seen: dict[str, object] = {"state": service.model.state, "device": health["device"]}
        for when in ("before", "after"):
            if when == "after":
                lose()
            detected = await client.post("/detect", content=image)
            seen[when] = {
                "detect": detected.status_code,
                "live": (await client.get("/health/live")).status_code,
                "ready": (await client.get("/health/ready")).status_code,
            }
        async with asyncio.timeout(LIMIT_S):
            while service.model.state == "ready":  # noqa: ASYNC110  # likewise
                await asyncio.sleep(0.05)
        seen["end"] = {
            "live": (await client.get("/health/live")).status_code,
            "detect": (await client.post("/detect", content=image)).status_code,
            "state": service.model.state,
            "failure": str(service.model.failure),
        }
        # Printed here: closing what is lost may take the process with it.
        print(json.dumps(seen), flush=True)
    return seen


def engine_answers(device: str, calls: Calls, lose: Callable[[], None]) -> dict[str, object]:
    """What an engine gives before the loss, and what it raises afterwards."""
    engine = Engine.open(
        load_model(REPO / "weights"),
        device=device,
        max_batch_size=2,
        cuda_graphs=calls == "graphs",
    )
    engine.warm_up()
    images = batch_of(engine.artifact.metadata, engine.artifact.metadata.input_hw, 2)
    seen: dict[str, object] = {"before": engine.run(images).shape}
    lose()
    try:
        engine.run(images)
    except ServerError as error:
        seen["after"] = {"code": error.code, "text": str(error)}
    return seen


def main(kind: str, method: str, flags: list[str]) -> int:
    """Runs one of the two; returns the exit code."""
    lose = METHODS[method]
    if kind == "app":
        asyncio.run(answers(flags, lose))
        return 0
    if kind == "engine":
        device, calls = flags
        assert calls in CALLS
        print(json.dumps(engine_answers(device, calls, lose)), flush=True)
        return 0
    signal.signal(signal.SIGUSR1, lambda *_: lose())
    return serve(flags)


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], sys.argv[3:])
    sys.stdout.flush()
    os._exit(code)  # as the server does
