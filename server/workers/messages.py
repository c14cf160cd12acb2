"""The messages between the engine process and its workers: lines of JSON over a Unix socket.

Both ends are the same code, so there is no version. JSON and not pickle: a worker reads what
clients send, and what it sends in turn must not be able to run anything in the process with the
model.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import orjson

from server.observability.logs import get_logger
from server.observability.metrics_merge import Snapshot

MAX_MESSAGE_BYTES = 16 * 2**20

logger = get_logger(__name__)


# ---- from a worker to the engine process


class Ready(NamedTuple):
    """The worker takes connections now."""


class StartupFailed(NamedTuple):
    """The worker can't start as the server was deployed, and ends."""

    reason: str


class Reserve(NamedTuple):
    """Asks for slots, one an image; answered by `SlotsGranted` or `SlotsRefused`."""

    request: int
    generation: int
    images: int


class Submit(NamedTuple):
    """A slot holds an image; answered by `Inferred` or `Failed`, unless it is released before."""

    slot: int
    height: int
    width: int
    remaining_s: float | None  # None: without end


class Release(NamedTuple):
    """Slots are not needed any more, whatever becomes of them."""

    slots: list[int]


class ModelReleased(NamedTuple):
    """No request in this worker has a model any more that was replaced."""

    generation: int


class Ack(NamedTuple):
    """Acknowledges a `StateUpdate` or a `Ping`."""

    number: int


class Reload(NamedTuple):
    """Asks for a reload; answered by `Reloaded`."""

    request: int


class MetricsRequest(NamedTuple):
    """Asks for the metrics of all processes; answered by `MetricsResponse`."""

    request: int


class MetricsSnapshot(NamedTuple):
    """The metrics of this worker, as `SnapshotRequest` asked for them."""

    number: int
    snapshot: Snapshot


# ---- from the engine process to a worker


class Init(NamedTuple):
    """The first message: what the worker is.

    Attributes:
        name: of the process, such as "http-1".
        settings: of the worker, as `server.settings.Settings` takes them.
        model_name: of the model.
        memory_bytes: that the process may use, with its share of what all use.
        connections: that it may have open.
        keys: digests of the API keys, in hex.
    """

    name: str
    settings: dict[str, Any]
    model_name: str
    memory_bytes: int
    connections: int
    keys: list[str]


class StateUpdate(NamedTuple):
    """The state of the server; answered by `Ack`.

    Attributes:
        number: of this message, growing.
        state: as `server.serving.interface.State`.
        deployment: where that is "failed" by the deployer's fault, in words; else None.
        engine: as `server.workers.remote_engine.described`; None before there is one.
        others_bytes: what the engine process and the shared memory take of this one's memory.
        keys: digests of the API keys, in hex.
    """

    number: int
    state: str
    deployment: str | None
    engine: dict[str, Any] | None
    others_bytes: int
    keys: list[str]


class Ping(NamedTuple):
    """A heartbeat, with a number like that of `StateUpdate`; answered by `Ack`."""

    number: int


class SlotsGranted(NamedTuple):
    """Slots by their offsets in the shared memory, in bytes; candidates begin so much further."""

    request: int
    slots: list[int]
    candidates_at: int


class SlotsRefused(NamedTuple):
    """The queue is full."""

    request: int
    reason: str


class Inferred(NamedTuple):
    """So many rows of candidates are in the slot."""

    slot: int
    rows: int
    queue_s: float
    inference_s: float


class Failed(NamedTuple):
    """The image of a slot was not inferred."""

    slot: int
    code: str
    reason: str


class Reloaded(NamedTuple):
    """The reload is done; or why it was not, with the code of the error."""

    request: int
    code: str | None
    reason: str


class SnapshotRequest(NamedTuple):
    """Asks a worker for its metrics; answered by `MetricsSnapshot`."""

    number: int


class MetricsResponse(NamedTuple):
    """The metrics of the engine process, and of all workers."""

    request: int
    own: Snapshot
    workers: list[Snapshot]


Message: TypeAlias = (
    Ready | StartupFailed | Reserve | Submit | Release | ModelReleased | Ack | Reload
    | MetricsRequest | MetricsSnapshot | Init | StateUpdate | Ping | SlotsGranted | SlotsRefused
    | Inferred | Failed | Reloaded | SnapshotRequest | MetricsResponse
)  # fmt: skip
KINDS: tuple[type[Message], ...] = (
    Ready, StartupFailed, Reserve, Submit, Release, ModelReleased, Ack, Reload, MetricsRequest,
    MetricsSnapshot, Init, StateUpdate, Ping, SlotsGranted, SlotsRefused, Inferred, Failed,
    Reloaded, SnapshotRequest, MetricsResponse,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


class BadMessage(Exception):
    """What came is none of the messages."""


def encode(message: Message) -> bytes:
    """A message as a line."""
    return orjson.dumps((_NUMBERS[type(message)], *message), option=orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Message:
    """The message of a line, without its end.

    Raises:
        BadMessage: there is none.
    """
    try:
        number, *fields = orjson.loads(line)
        message: Message = KINDS[number](*fields)
    except (ValueError, TypeError, IndexError) as error:
        raise BadMessage(f"{line[:100]!r}: {error}") from None
    return message


class MessageReader:
    """Cuts what comes into messages."""

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = rest

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now.

        Raises:
            BadMessage: one is none, or too large.
        """
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        for line in lines:
            yield decode(line)
        if len(self._rest) > MAX_MESSAGE_BYTES:
            raise BadMessage(f"a message of over {MAX_MESSAGE_BYTES} bytes")


class Channel(asyncio.Protocol):
    """Sends and receives messages; several of one turn of the event loop go in one write (uvloop).

    Args:
        handle: gets each message.
        handled: called after those of one read.
        lost: called once, when the other end is gone, or sent what is no message.
        rest: bytes that were read already.
    """

    def __init__(
        self,
        handle: Callable[[Message], None],
        *,
        lost: Callable[[], None],
        handled: Callable[[], None] = lambda: None,
        rest: bytes = b"",
    ) -> None:
        self._handle = handle
        self._handled = handled
        self._lost = lost
        self._rest = rest
        self._reader = MessageReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins with what was read already."""
        self._transport = cast(asyncio.Transport, transport)
        if self._rest:
            self.data_received(self._rest)

    def data_received(self, data: bytes) -> None:
        """Hands on what came."""
        try:
            for message in self._reader.feed(data):
                self._handle(message)
        except BadMessage as error:
            logger.error("bad_message", reason=str(error))
            self.close()
        self._handled()

    def connection_lost(self, _: Exception | None) -> None:
        """Reports that the other end is gone."""
        self._transport = None
        self._lost()

    def send(self, message: Message) -> None:
        """Sends a message; nothing when the other end is gone."""
        if self._transport is not None:
            self._transport.write(encode(message))

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not read, beside what the kernel keeps."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def close(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()
