"""The metrics as Markdown tables: from `server.observability.metrics` and the GPU's families."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.registry import Collector

from server.http.errors import rejection_reasons
from server.observability.gpu_metrics import FAMILIES, LABELS
from server.observability.metrics import STAGES, STATES, CallbackCounter, Metrics

UNITS = ("seconds", "bytes", "ratio", "celsius", "images", "requests", "instances")
# What a label's value may be. The lists are the code's.
LABEL_VALUES: Mapping[str, str] = {
    "route": "the route's template such as `/detect` or `/v2/models/{name}/infer`, never the path "
    "as sent; `unmatched` where none took the request",
    "status": "the HTTP status; `499` where the client disconnected before its response",
    "outcome": "`ok`, or for images the error code of the image, for reloads `failed`",
    "stage": ", ".join(f"`{each}`" for each in STAGES),
    "reason": "an [error code](errors.md)",
    "state": ", ".join(f"`{each}`" for each in STATES),
    "version": "of the model: the first 12 digits of its file's SHA-256; of the build: the release",
    "revision": "the commit that was built; with `-dirty` where files differed from it, with "
    "`-checkout` where nothing was built; or `unknown`",
    "name": "the model's name",
    "precision": "`fp32`, `fp16` or `int8`",
    "provider": "the execution provider that really runs, such as `CPUExecutionProvider`",
    "device": "where it runs: `cpu`, `cuda:0`, ...",
    "gpu": "the number that `nvidia-smi` gives it",
    "uuid": "the GPU's own, the same after a restart and in a container",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric family.

    Attributes:
        name: as a query has it; of a histogram without `_bucket`, `_sum`, `_count`.
        kind: counter, gauge or histogram.
        labels: their names, in order.
        help: what it counts.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def unit(self) -> str:
        """By the name, as Prometheus' conventions have it."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if stem.endswith(unit)), "")


def all_metrics() -> dict[str, Metric]:
    """Every metric of the server, also those that need a GPU; those of the process apart."""
    metrics = Metrics(sorted(rejection_reasons()))
    metrics.set_model(name="", version="", precision="", provider="", device="")
    # The registry's own list: a metric with labels and no values yet is in no scrape.
    collectors = metrics.registry._collector_to_names
    found = [_metric(each) for each in collectors if hasattr(each, "_labelnames")]
    asked = [each.collect() for each in collectors if isinstance(each, CallbackCounter)]
    found += [
        Metric(f"{family.name}_total", family.type, (), family.documentation)
        for families in asked
        for family in families
    ]
    found += [Metric(name, "gauge", LABELS, text) for name, text in FAMILIES.items()]
    return {each.name: each for each in found}


def metrics_table(names: Sequence[str]) -> str:
    """A row for each of some metrics.

    Raises:
        KeyError: one that is not there.
    """
    known = all_metrics()
    rows = ["| metric | type | labels | unit | |", "|---|---|---|---|---|"]
    for name in names:
        metric = known[name]
        labels = ", ".join(f"`{each}`" for each in metric.labels)
        rows.append(f"| `{name}` | {metric.kind} | {labels} | {metric.unit} | {metric.help} |")
    return "\n".join(rows)


def labels_table(names: Sequence[str]) -> str:
    """A row for each of some labels.

    Raises:
        KeyError: one that no metric has, or that nothing is said of.
    """
    used = {label for metric in all_metrics().values() for label in metric.labels}
    rows = ["| label | values |", "|---|---|"]
    for name in names:
        if name not in used:
            raise KeyError(name)
        rows.append(f"| `{name}` | {LABEL_VALUES[name]} |")
    return "\n".join(rows)


def _metric(collector: Collector) -> Metric:
    (family,) = collector.collect()
    names = list(collector._labelnames)  # type: ignore[attr-defined]  # no public way
    if family.type == "info":  # its labels come with its value
        names += [label for sample in family.samples for label in sample.labels]
    ending = {"counter": "_total", "info": "_info"}.get(family.type, "")
    kind = "gauge" if family.type == "info" else family.type  # as it is in the text format
    return Metric(family.name + ending, kind, tuple(dict.fromkeys(names)), family.documentation)
