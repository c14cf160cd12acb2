"""The server's Prometheus metrics, in one registry per app."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.observability.log_output import process_log
from server.version import UNKNOWN, this_build

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("decode", "letterbox", "queue", "inference", "postprocess")
# Statuses of detection requests that start at 0, so that a first failure is a rate, too.
FIRST_STATUSES = ("200", "499", "500", "503", "504")
TOO_MANY_CONNECTIONS = "too_many_connections"  # the reason that no request can meet
STATES = ("starting", "ready", "hung", "draining", "failed")

# From half a millisecond (a letterbox) to the request timeout, each step about a factor of two.
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
# Closer, as percentiles are estimated between two bounds: from a lone request on a GPU up.
REQUEST_SECONDS = (
    0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5,
    3.5, 5.0, 7.5, 10.0, 15.0, 30.0,
)  # fmt: skip
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerStatus(NamedTuple):
    """What the metrics report of a process; each asks for it anew when they are collected.

    Attributes:
        state: one of `STATES`.
        queue_images: images that wait.
        max_queue_images: the limit of `queue_images`.
        inflight_body_bytes: bytes that requests' bodies have in memory.
        max_inflight_body_bytes: the limit of `inflight_body_bytes`.
        instances: inferences that may run side by side.
        active_inferences: inferences that run.
    """

    state: str = "starting"
    queue_images: int = 0
    max_queue_images: int = 0
    inflight_body_bytes: int = 0
    max_inflight_body_bytes: int = 0
    instances: int = 0
    active_inferences: int = 0


class Metrics:
    """Counts and times of one app.

    Args:
        rejection_reasons: error codes that start at 0, so that a first rejection is a rate too.
    """

    def __init__(self, rejection_reasons: Iterable[str] = ()) -> None:
        self._status: Callable[[], ServerStatus] = ServerStatus
        # `_created` series double the output and say nothing that Prometheus uses.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "detector_requests",
            "HTTP requests completed.",
            ["route", "status"],
            registry=self.registry,
        )
        self.images = Counter(
            "detector_images",
            "Images in completed requests: ok, or the error code of the image.",
            ["outcome"],
            registry=self.registry,
        )
        self.images.labels("ok")
        stage_seconds = Histogram(
            "detector_stage_seconds",
            "Seconds one image spent in a stage; inference is the call of its whole batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        # By status: under overload most answers are refusals, and take no time.
        self.request_seconds = Histogram(
            "detector_request_seconds",
            "Seconds from the end of a detection request's headers to its response.",
            ["status"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        for status in FIRST_STATUSES:
            self.request_seconds.labels(status)
        self.batch_size = Histogram(
            "detector_batch_size",
            "Images in one inference.",
            buckets=IMAGES,
            registry=self.registry,
        )
        self.rejected = Counter(
            "detector_rejected",
            "Detection requests refused or failed, and connections refused, by error code.",
            ["reason"],
            registry=self.registry,
        )
        for reason in (*rejection_reasons, TOO_MANY_CONNECTIONS):
            self.rejected.labels(reason)
        self.inference_busy_seconds = Counter(
            "detector_inference_busy_seconds",
            "Seconds that model instances spent in inference: n busy instances add n a second.",
            registry=self.registry,
        )
        self.inflight_requests = Gauge(
            "detector_inflight_requests",
            "HTTP requests in progress.",
            registry=self.registry,
        )
        self.reloads = Counter(
            "detector_reloads",
            "Reloads of model and keys: ok, or failed and the old model stayed in service.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("ok", "failed"):
            self.reloads.labels(outcome)
        for name, documentation in (
            ("queue_images", "Images accepted and not yet in an inference."),
            ("max_queue_images", "Images that may wait: the setting of that name."),
            ("inflight_body_bytes", "Bytes that requests' bodies have in memory."),
            ("max_inflight_body_bytes", "Bytes that all bodies together may have in memory."),
            ("instances", "Inferences that may run at the same time."),
            ("active_inferences", "Inferences that run now."),
        ):
            gauge = Gauge(f"detector_{name}", documentation, registry=self.registry)
            gauge.set_function(partial(self._now, name))
        states = Gauge(
            "detector_state",
            "1 for the state that the server is in, 0 for the others.",
            ["state"],
            registry=self.registry,
        )
        for each in STATES:
            states.labels(each).set_function(partial(self._is_state, each))
        self.http_workers = Gauge(
            "detector_http_workers",
            "HTTP workers that are ready; `http_workers` when all of them run.",
            registry=self.registry,
        )
        self.http_workers.set(1)
        self.worker_restarts = Counter(
            "detector_worker_restarts",
            "HTTP workers that died and were restarted.",
            registry=self.registry,
        )
        self.shared_slots = Gauge(
            "detector_shared_slots",
            "Images that the memory shared with several HTTP workers has room for.",
            registry=self.registry,
        )
        self.busy_shared_slots = Gauge(
            "detector_busy_shared_slots",
            "Images that are in it, or that HTTP workers have reserved room for.",
            registry=self.registry,
        )
        self.registry.register(
            CallbackCounter(
                "detector_log_lines_dropped",
                "Log lines that were not written: their file took none, or not as fast.",
                lambda: process_log().dropped,
            )
        )
        build = Info("detector_build", "The software that runs.", registry=self.registry)
        version, revision = this_build()
        build.info({"version": version, "revision": revision or UNKNOWN})
        self.cpu_fallback = Gauge(
            "detector_cpu_fallback",
            "1 where the model runs on the CPU though a GPU was to be expected; /health says why.",
            registry=self.registry,
        )
        self._model = Info("detector_model", "The model that runs.", registry=self.registry)

    def observe(self, status: Callable[[], ServerStatus]) -> None:
        """Reports what `status` returns at each collection, on any thread."""
        self._status = status

    def set_model(
        self, *, name: str, version: str, precision: str, provider: str, device: str
    ) -> None:
        """Says which model runs where; until then `detector_model_info` has no labels."""
        self._model.info(
            {
                "name": name,
                "version": version,
                "precision": precision,
                "provider": provider,
                "device": device,
            }
        )

    def exposition(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def _now(self, name: str) -> float:
        return float(getattr(self._status(), name))

    def _is_state(self, state: str) -> float:
        return float(self._status().state == state)


class CallbackCounter(Collector):
    """A counter whose value is computed at each scrape."""

    def __init__(self, name: str, documentation: str, value: Callable[[], int]) -> None:
        self._name = name
        self._documentation = documentation
        self._value = value

    def collect(self) -> Iterator[Metric]:
        """The value, now."""
        yield CounterMetricFamily(self._name, self._documentation, value=self._value())
