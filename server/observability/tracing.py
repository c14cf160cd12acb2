"""OpenTelemetry traces: one span a request, with a child for each stage. Costs nothing when off."""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from server.errors import SettingsInvalid
from server.version import this_build

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "yolov8-fla"
CLOSE_S = 5.0
TRACES_PATH = "/v1/traces"  # of OTLP over HTTP
# In the order in which an image goes through them.
STAGES = ("decode", "queue", "inference", "postprocess")


class Tracing:
    """Sends spans to a collector, in batches, on a thread of its own.

    A request's W3C `traceparent` is taken over, its decision about sampling included. Variables
    of the OpenTelemetry SDK (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...) hold.

    Args:
        provider: of the OpenTelemetry SDK.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        # Here and not above: the extra may not be installed, and the import takes 0.2 s.
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str]) -> "RequestSpan":
        """Begins the span of a request.

        Args:
            headers: the request's, names in lower case or without regard to case.
        """
        from opentelemetry.trace import SpanKind

        names = ("traceparent", "tracestate")
        carrier = {name: headers[name] for name in names if name in headers}
        parent = self._propagator.extract(carrier)
        span = self._tracer.start_span("request", parent, kind=SpanKind.SERVER)
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        """Sends what is left; blocks until it is sent, or for `CLOSE_S` seconds."""
        # A collector that does not answer must not hold up the end of the process.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class RequestSpan:
    """The span of a request that runs; made by `Tracing.begin`."""

    def __init__(self, tracer: "trace.Tracer", span: "trace.Span") -> None:
        self._tracer = tracer
        self._span = span
        self.trace_id = format(span.get_span_context().trace_id, "032x")

    def end(
        self,
        method: str,
        route: str,
        status: int,
        stage_ms: Mapping[str, float],
        attributes: Mapping[str, Any],
    ) -> None:
        """Ends it at the answer.

        The stages become children with their measured durations, one after the other up to now:
        of a request with several images each is the longest that any image spent in it.

        Args:
            method: of HTTP.
            route: the template, not the path.
            status: of HTTP.
            stage_ms: milliseconds by stage.
            attributes: more of them; those that are None are left out.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        ended_ns = time.time_ns()
        self._span.update_name(f"{method} {route}")
        described = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            **attributes,
        }
        self._span.set_attributes({k: v for k, v in described.items() if v is not None})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        if self._span.is_recording() and any(stage_ms.values()):
            context = set_span_in_context(self._span)
            stage_ns = [(s, int(stage_ms[s] * 1e6)) for s in STAGES if s in stage_ms]
            begin_ns = ended_ns - sum(ns for _, ns in stage_ns)
            for stage, ns in stage_ns:
                child = self._tracer.start_span(stage, context, start_time=begin_ns)
                begin_ns += ns
                child.end(begin_ns)
        self._span.end(ended_ns)


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Traces to a collector; None where no endpoint is set.

    Args:
        endpoint: an http or https URL; without a path, `/v1/traces` is meant.

    Raises:
        SettingsInvalid: not such a URL, or the extra `otel` is not installed.
    """
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsInvalid(
            f"otlp_endpoint must be a URL like http://collector:4318, not {endpoint!r}"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsInvalid(
            f"otlp_endpoint needs the extra otel ({error.name} is missing): "
            "`.venv-serve/bin/python -m pip install -c constraints.txt -e '.[otel]'` in a "
            "checkout, elsewhere `pip install 'yolov8-fla[otel]'`"
        ) from None
    path = parts.path if parts.path not in ("", "/") else TRACES_PATH
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": SERVICE, "service.version": this_build().version}
        ),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=parts._replace(path=path).geturl())
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
