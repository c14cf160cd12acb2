"""What concerns all replicas though a request reaches one: metrics, and the reload of the model."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from ray import serve
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ReloadFailed
from server.http.errors import problem_response
from server.http.state import record_of
from server.observability.logs import get_logger
from server.observability.metrics import CONTENT_TYPE

# Where a replica does not answer in this time there are no metrics at all: rather none than some,
# as a sum over half of the replicas looks like a fall of the load.
METRICS_TIMEOUT_S = 5.0

logger = get_logger(__name__)


class AllReplicas:
    """Speaks to every replica of the deployment that it is made in.

    Attributes:
        own_name: of the replica that it is made in.
    """

    def __init__(self) -> None:
        context: Any = serve.get_replica_context()
        self.own_name: str = context.replica_id.unique_id
        self._handle: Any = serve.get_deployment_handle(context.deployment, context.app_name)

    def around(self, app: ASGIApp) -> ASGIApp:
        """An app whose `/metrics` are those of all, and whose reload reaches all."""

        async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
            send = _without_request_id(scope, send)
            route = scope.get("method"), scope["path"]
            if route == ("GET", "/metrics"):
                content = await self._metrics()
                await Response(content, media_type=CONTENT_TYPE)(scope, receive, send)
            elif route == ("POST", "/model/reload"):
                await self._reload(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return asgi

    async def _metrics(self) -> bytes:
        try:
            answers = await self._ask("exposition", timeout_s=METRICS_TIMEOUT_S)
        except TimeoutError:
            answers = []
            logger.warning("metrics_late", timeout_s=METRICS_TIMEOUT_S)
        return merged(answer for answer in answers if isinstance(answer, tuple))

    async def _reload(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Reloads here first: what this replica refuses, the others are not asked to try."""
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        await app(scope, receive, hold)
        if held and held[0]["status"] == 200:
            answers = await self._ask("follow_reload", self.own_name)
            faults = [str(each) for each in answers if each is not None]
            if faults:
                logger.error("reload_not_followed", reasons=faults)
                await _reload_failed(scope, faults)(scope, receive, send)
                return
        for message in held:
            await send(message)

    async def _ask(self, method: str, *args: str, timeout_s: float | None = None) -> list[Any]:
        response = self._handle.broadcast(method, *args)
        answers: list[Any] = await response.results_async(
            timeout_s=timeout_s, return_exceptions=True
        )
        return answers


def merged(expositions: Iterable[tuple[str, str]]) -> bytes:
    """Metrics of several replicas in one text, each sample with the label `replica`.

    Args:
        expositions: name and metrics, in Prometheus' text format, of each.
    """
    families: dict[str, Metric] = {}
    for name, text in expositions:
        for family in text_string_to_metric_families(text):
            known = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            known.samples += [
                Sample(each.name, {**each.labels, "replica": name}, each.value)
                for each in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Collected(families.values()))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _reload_failed(scope: Scope, faults: list[str]) -> Response:
    detail = f"some replicas still serve the model of before: {'; '.join(faults)}"
    return problem_response(record_of(scope), 409, ReloadFailed.code, detail)


def _without_request_id(scope: Scope, send: Send) -> Send:
    """Drops the id from an answer where Serve's proxy, which knows it, adds it again."""
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)

    async def send_once(message: Message) -> None:
        if message["type"] == "http.response.start" and sent is not None:
            headers = [each for each in message["headers"] if each != (b"x-request-id", sent)]
            message = {**message, "headers": headers}
        await send(message)

    return send_once
