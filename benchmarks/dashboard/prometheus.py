"""A Prometheus of its own, with the shipped configuration: only targets and intervals differ."""

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from benchmarks.dashboard.queries import ROOT
from benchmarks.load.process import END_S, DidNotStart, free_port

CONFIGURATION = ROOT / "docker" / "prometheus" / "prometheus.yml"
JOB = "detector"
START_S = 30.0
ASK_S = 10.0
POLL_S = 0.05


class PrometheusMissing(Exception):
    """There is no `prometheus` on the PATH."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of an answer.

    Attributes:
        labels: without the name of the metric.
        value: may be NaN, where nothing happened in the range that was asked for.
    """

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that runs and is ready."""

    url: str

    def ask(self, expr: str, at_s: float | None = None) -> list[Series]:
        """What Prometheus answers to PromQL.

        Args:
            expr: an instant vector or a scalar.
            at_s: as of when, in seconds since the epoch; now by default.

        Raises:
            HTTPError: it is not PromQL.
        """
        when = {} if at_s is None else {"time": f"{at_s:.3f}"}
        answer = self.get("query", query=expr, **when)
        if answer["resultType"] == "scalar":
            return [Series({}, float(answer["result"][1]))]
        return [
            Series(
                {name: value for name, value in each["metric"].items() if name != "__name__"},
                float(each["value"][1]),
            )
            for each in answer["result"]
        ]

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its interface.

        Args:
            path: below /api/v1.
            parameters: of the query; `match` is sent as `match[]`.
        """
        named = {"match[]" if name == "match" else name: v for name, v in parameters.items()}
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(named)}", timeout=ASK_S) as answer:
            return json.load(answer)["data"]

    def until_scraped(self, times: int, limit_s: float = START_S) -> None:
        """Waits until every target has been scraped so many times more.

        Raises:
            TimeoutError: one was not.
        """
        seen = {each["scrapeUrl"]: each["lastScrape"] for each in self._targets()}
        left = dict.fromkeys(seen, times)
        end_s = time.monotonic() + limit_s
        while not left or any(left.values()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"not scraped so often in {limit_s:g} s: {left}")
            time.sleep(POLL_S)
            for each in self._targets():
                url = each["scrapeUrl"]
                left.setdefault(url, times)  # they are not there at once
                if each["lastScrape"] != seen.get(url) and each["health"] == "up":
                    left[url] = max(0, left[url] - 1)
                seen[url] = each["lastScrape"]

    def _targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self.get("targets", state="active")["activeTargets"]
        return targets


def configuration(targets: Sequence[str], interval_s: float) -> dict[str, Any]:
    """The shipped configuration for other targets, asked more often.

    Args:
        targets: HOST:PORT of each.
        interval_s: between scrapes, and between evaluations of the alerts.
    """
    shipped: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    interval = f"{math.ceil(interval_s * 1000)}ms"
    shipped["global"] |= {
        "scrape_interval": interval,
        "evaluation_interval": interval,
        "scrape_timeout": interval,
    }
    shipped["rule_files"] = [str(CONFIGURATION.parent / each) for each in shipped["rule_files"]]
    (job,) = (each for each in shipped["scrape_configs"] if each["job_name"] == JOB)
    job["static_configs"] = [{"targets": list(targets)}]
    return shipped


def find_prometheus() -> str:
    """The program.

    Raises:
        PrometheusMissing: it is not on the PATH.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusMissing("there is no `prometheus` on the PATH (Debian's package has it)")
    return program


@contextmanager
def prometheus(targets: Sequence[str], interval_s: float) -> Iterator[Prometheus]:
    """Runs one until the block ends; it keeps nothing.

    Args:
        targets: HOST:PORT of each.
        interval_s: between scrapes.

    Raises:
        PrometheusMissing: there is none to be run.
        DidNotStart: it ended, or was not ready in time.
    """
    program = find_prometheus()
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        config, log = folder / "prometheus.yml", folder / "log"
        config.write_text(yaml.safe_dump(configuration(targets, interval_s)), encoding="utf-8")
        address = f"127.0.0.1:{free_port()}"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        try:
            end_s = time.monotonic() + START_S
            while not _is_ready(f"http://{address}"):
                if process.poll() is not None or time.monotonic() > end_s:
                    raise DidNotStart(f"prometheus: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(POLL_S)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/-/ready", timeout=ASK_S) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False
