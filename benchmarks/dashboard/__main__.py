"""What Grafana would show: every query of the dashboard, answered by Prometheus after some load.

    python -m benchmarks.dashboard [--seconds 60] [--clients 32] [--images FOLDER]

Starts the server with the default weights and a Prometheus with the shipped configuration (only
target and interval differ), lets clients ask, and prints a table of what Prometheus answers for the
end of the load. One request in fifty holds no image. Needs `prometheus` on the PATH; ends with 1
where a panel has no answer that should have one.
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.dashboard.prometheus import PrometheusMissing, Series
from benchmarks.dashboard.queries import ROOT, PanelQuery, alerts, panel_queries
from benchmarks.dashboard.watch import RATE_INTERVAL, Watched, watched
from benchmarks.load.process import DidNotStart
from benchmarks.load.summary import summarize
from benchmarks.serving.sample_images import read_images
from server.observability.gpu_metrics import open_nvml

MOST_SHOWN = 6  # series of an answer
GPU = "detector_gpu_"
TEMPLATE = re.compile(r"(,|GPU| of)? *\{\{\w+\}\}")  # what a legend takes from labels


def main(arguments: Sequence[str]) -> int:
    """Runs and prints; returns the exit code."""
    given = _parser().parse_args(arguments)
    images = [each.data for each in read_images(given.images, 32)]
    try:
        with watched(
            ROOT / "weights",
            images,
            clients=given.clients,
            seconds=given.seconds,
            interval_s=given.interval,
        ) as seen:
            return report(seen)
    except (PrometheusMissing, DidNotStart) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(seen: Watched) -> int:
    """Prints the tables; 1 where something has no answer."""
    load = summarize(seen.load)
    print(
        f"{load.requests} requests in {load.seconds:.0f} s, by status {load.statuses}; "
        f"the clients saw {load.images_per_s:.1f} images/s, p99 {load.p99_ms / 1e3:.3f} s\n"
    )
    silent = 0
    print("| row | panel | query | Prometheus' answer |\n|---|---|---|---|")
    queries = panel_queries()
    lines = Counter((query.row, query.panel) for query in queries)
    for query in queries:
        found = seen.prometheus.ask(query.filled([seen.server], RATE_INTERVAL), seen.ended_s)
        if not found and GPU in query.expr and open_nvml() is None:
            shown = "none: there is no GPU here"
        else:
            shown = "; ".join(describe_series(query, found))
            silent += not shown
        expr = query.expr.replace("|", "\\|")
        title = headed(query) if lines[query.row, query.panel] > 1 else query.panel
        print(f"| {query.row or 'at a glance'} | {title} | `{expr}` | {shown or '**none**'} |")
    print("\n| alert | state |\n|---|---|")
    known = seen.prometheus.ask("ALERTS", seen.ended_s)
    states = {each.labels["alertname"]: each.labels["alertstate"] for each in known}
    for alert in alerts():
        print(f"| {alert.name} | {states.get(alert.name, 'silent')} |")
    return 1 if silent else 0


def describe_series(query: PanelQuery, found: Sequence[Series]) -> list[str]:
    """An answer in words: the largest series first; those that say nothing are counted."""
    if query.legend == "":  # a table: its labels are what it shows
        return [", ".join(f"{name}={value}" for name, value in s.labels.items()) for s in found]
    there = [s for s in found if not math.isnan(s.value)]
    if query.legend == "{{le}}":
        there = bars(there)
    else:
        there.sort(key=lambda s: -s.value)
    if len(there) == 1:
        return [f"{there[0].value:.4g}"]
    shown = [s for s in there if s.value][:MOST_SHOWN] or there[:1]
    words = [f"{' '.join(s.labels.values())} {s.value:.4g}" for s in shown]
    rest = len(there) - len(shown)
    return [*words, f"and {rest} that are less or 0"] if rest else words


def bars(cumulative: Sequence[Series]) -> list[Series]:
    """The bars of a histogram from its buckets, each of which holds those below it, too."""
    buckets = sorted(cumulative, key=lambda s: float(s.labels["le"]))
    below = [0.0, *(s.value for s in buckets)]
    return [
        Series({"le": f"up to {s.labels['le']}:"}, s.value - less)
        for s, less in zip(buckets, below, strict=False)
    ]


def headed(query: PanelQuery) -> str:
    """A panel's title, and which of its lines, where that does not depend on the answer."""
    line = TEMPLATE.sub("", query.legend)
    return f"{query.panel}: {line}" if line else query.panel


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60, help="of load")
    add("--clients", type=int, default=32)
    add("--interval", type=float, default=1, help="seconds between scrapes")
    add("--images", type=Path, default=ROOT / "samples", help="JPEGs, some of 640 x 480")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
