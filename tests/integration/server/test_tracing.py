"""Traces as a collector receives them: OTLP over HTTP, decoded."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from server.errors import SettingsInvalid
from server.http.state import state_of
from server.observability.tracing import open_tracing
from tests.support.serving import Served, one_cell, served

pytestmark = pytest.mark.anyio
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        collector = self.server
        assert isinstance(collector, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        collector.paths.add(self.path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            collector.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                collector.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def flush(running: Served) -> None:
    tracing = state_of(running.app).tracing
    assert tracing is not None
    tracing.close()


async def test_a_request_is_a_span_with_its_stages(artifact: Path) -> None:
    with collecting() as collector:
        async with served(artifact, otlp_endpoint=collector.url) as running:
            header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = await running.client.post("/detect", content=one_cell(), headers=header)
            version = (await running.client.get("/model")).json()["version"]
            flush(running)
        assert collector.paths == {"/v1/traces"}
        assert collector.services == {"yolov8-fla"}
        (request,) = [span for span in collector.spans if span.name == "POST /detect"]
        assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
        known = attributes(request)
        assert known["http.request.method"] == "POST"
        assert known["http.route"] == "/detect"
        assert known["http.response.status_code"] == 200
        assert known["detector.images"] == 1
        assert known["detector.model_version"] == version
        stages = [span for span in collector.spans if span.parent_span_id == request.span_id]
        assert [span.name for span in stages] == ["decode", "queue", "inference", "postprocess"]
        timings = answer.json()["timings_ms"]
        for span in stages:
            took_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
            assert took_ms == pytest.approx(timings[span.name], abs=0.002)
            assert span.trace_id.hex() == TRACE
            assert request.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= request.end_time_unix_nano


async def test_log_lines_carry_the_trace_and_a_refusal_is_in_its_span(artifact: Path) -> None:
    with collecting() as collector:
        async with served(artifact, otlp_endpoint=collector.url + "/v1/traces") as running:
            with capture_logs(processors=[merge_contextvars]) as lines:
                await running.client.post("/detect", content=b"no image")
            flush(running)
        (span,) = collector.spans
        known = attributes(span)
        assert (known["error.type"], known["http.response.status_code"]) == (
            "unsupported_image",
            415,
        )
        (line,) = [line for line in lines if line["event"] == "request"]
        assert line["trace_id"] == span.trace_id.hex()


async def test_a_trace_that_is_not_sampled_elsewhere_is_not_sent(artifact: Path) -> None:
    with collecting() as collector:
        async with served(artifact, otlp_endpoint=collector.url) as running:
            header = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            await running.client.get("/health/live", headers=header)
            flush(running)
        assert collector.spans == []


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", ""])
def test_a_place_for_traces_is_a_url(endpoint: str) -> None:
    with pytest.raises(SettingsInvalid, match="http://collector:4318"):
        open_tracing(endpoint)


def test_without_the_extra_the_fix_is_said(repo_dir: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from server.observability.tracing import open_tracing\n"
        "assert open_tracing(None) is None\n"
        "try: open_tracing('http://x:4318')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=True
    )
    assert "SettingsInvalid otlp_endpoint needs the extra otel" in ended.stdout
    assert "pip install 'yolov8-fla[otel]'" in ended.stdout


def test_no_sdk_is_imported_when_it_is_off(repo_dir: Path) -> None:
    code = (
        "import sys, json, server.api.app, server.observability.tracing\n"
        "server.observability.tracing.open_tracing(None)\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests')\n"
        "print(json.dumps([m for m in sys.modules if m.startswith(heavy)]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout) == []
