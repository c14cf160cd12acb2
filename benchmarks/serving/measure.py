"""Runs one contestant of one case for one window, and puts what came out into a row."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import contestants
from benchmarks.load.contestants import Contestant, Thresholds
from benchmarks.load.envs import ROOT, python_of
from benchmarks.load.http_client import Request
from benchmarks.load.loops import Load, closed_load, poisson_load, run_light
from benchmarks.load.process import DidNotStart, free_port, running
from benchmarks.load.summary import summarize
from benchmarks.serving.cases import Case, Entry
from benchmarks.serving.limit import arrangements
from benchmarks.serving.sample_images import Image, box_counts, requests
from server.host import available_cpus
from server.inference.artifact import read_metadata
from server.vision.letterbox import choose_bucket

Row = dict[str, Any]
FINALISTS = 2  # arrangements of the limit that run in every round
TRIAL_S, TRIAL_WARM_S = 1.5, 0.5  # window in which they are chosen


@dataclass
class Bench:
    """All that stays the same over a benchmark.

    Attributes:
        photos, wide: the images at 4:3 and at 16:9.
        seconds, warm_s: of each window, and before it.
        envs: folder of the peers' environments.
        python: that runs our server.
        tutorial_python: that runs the tutorial form; by default an environment of its own.
    """

    photos: Sequence[Image]
    wide: Sequence[Image]
    seconds: float
    warm_s: float
    envs: Path
    python: str = sys.executable
    tutorial_python: Path | None = None
    _counts: dict[tuple[Path, bool, Thresholds], list[int]] = field(default_factory=dict)
    _finalists: dict[Path, list[str]] = field(default_factory=dict)

    def row(self, case: Case, entry: Entry, reference: Path) -> Row:
        """Figures of one window; the key `failed` says why there are none.

        Args:
            case: with the entry.
            entry: who.
            reference: the artifact that the tutorial form has to agree with.
        """
        if entry.kind == "limit":
            return self._limit(case, entry)
        contestant = self.contestant(case, entry)
        about = {"arrangement": contestant.arrangement}
        asked = self.requests(case, contestant.path, self._artifact(entry, reference))
        try:
            with running(contestant, asked[0]) as server:
                load = run_light(
                    closed_load(
                        server.url,
                        asked,
                        clients=case.clients,
                        seconds=self.seconds,
                        warm_s=self.warm_s,
                        server_pid=server.pid,
                    )
                )
                return about | {"start_s": server.start_s} | figures_of(load)
        except DidNotStart as error:
            return about | {"failed": str(error)}

    def curve(self, case: Case, entry: Entry, rates: Sequence[float]) -> list[Row]:
        """Open-loop figures of our server at some rates, in images/s."""
        contestant = self.contestant(case, entry)
        asked = self.requests(case, contestant.path, entry.model)
        rows = []
        with running(contestant, asked[0]) as server:
            for seed, rate in enumerate(rates):
                load = run_light(
                    poisson_load(
                        server.url,
                        asked,
                        rate=rate,
                        seed=seed,
                        seconds=self.seconds,
                        warm_s=self.warm_s,
                        server_pid=server.pid,
                    )
                )
                rows.append({"name": entry.name, "offered_per_s": rate} | figures_of(load))
        return rows

    def contestant(self, case: Case, entry: Entry) -> Contestant:
        """The process of an entry, tuned for what the case measures."""
        port, thresholds = free_port(), case.thresholds
        if entry.kind == "ours":
            return contestants.ours(
                entry.model, thresholds, port, name=entry.name, python=self.python
            )
        python = self.tutorial_python if entry.kind == "tutorial" else None
        python = python or python_of(entry.kind, self.envs)
        if entry.kind == "tutorial":
            return contestants.tutorial(python, entry.model, thresholds, port)
        cpus = available_cpus()
        tuned = contestants.lone(cpus) if case.clients == 1 else contestants.saturated(cpus)
        return contestants.peer(entry.kind, python, entry.model, thresholds, tuned, port)

    def requests(self, case: Case, path: str, artifact: Path) -> list[Request]:
        """The case's images as requests that know their answer."""
        images = self.wide if case.wide else self.photos
        key = artifact, case.wide, case.thresholds
        if key not in self._counts:
            self._counts[key] = box_counts(artifact, images, case.thresholds)
        return requests(path, images, self._counts[key], case.slack)

    def _artifact(self, entry: Entry, reference: Path) -> Path:
        return reference if entry.kind == "tutorial" else entry.model

    def _limit(self, case: Case, entry: Entry) -> Row:
        if case.clients == 1:
            waits = self._run_limit(case, entry, self.seconds, ["--lone"])
            how, p50_ms = min(waits.items(), key=lambda item: item[1])
            threads = f"{available_cpus()} thread(s), {how}"
            return {"arrangement": threads, "p50_ms": p50_ms, "tried": waits}
        if entry.model not in self._finalists:
            every = [str(each) for each in arrangements(available_cpus())]
            trial = self._run_limit(case, entry, TRIAL_S, _arranged(every), TRIAL_WARM_S)
            ranked = sorted(trial, key=lambda each: -trial[each]["images_per_s"])
            self._finalists[entry.model] = ranked[:FINALISTS]
        chosen = self._finalists[entry.model]
        rates = self._run_limit(case, entry, self.seconds, _arranged(chosen))
        arrangement, rate = max(rates.items(), key=lambda item: item[1]["images_per_s"])
        instances, threads, batch, _ = arrangement.split("x")
        return {
            "arrangement": f"{instances} instance(s) of {threads} thread(s), batch {batch}",
            "images_per_s": rate["images_per_s"],
            "server_cpu_ms_per_image": rate["cpu_ms_per_image"],
            "tried": rates,
        }

    def _run_limit(
        self,
        case: Case,
        entry: Entry,
        seconds: float,
        flags: Sequence[str],
        warm_s: float | None = None,
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            for i, image in enumerate(self.wide if case.wide else self.photos):
                (Path(folder) / f"{i:04}.jpg").write_bytes(image.data)
            command = [self.python, "-m", "benchmarks.serving.limit", "--model", str(entry.model)]
            command += ["--images", folder, "--seconds", str(seconds)]
            command += ["--warm-s", str(self.warm_s if warm_s is None else warm_s), *flags]
            command += ["--conf", str(case.thresholds.conf)]
            command += ["--max-det", str(case.thresholds.max_det)]
            output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        figures: dict[str, Any] = json.loads(output)
        return figures


def figures_of(load: Load) -> Row:
    """A load's summary for JSON, which knows no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(summarize(load)).items()
    }


def shapes(artifact: Path, images: Sequence[Image]) -> dict[str, int]:
    """How many images go to each bucket of an artifact."""
    buckets = read_metadata(artifact).buckets
    chosen = [choose_bucket(image.hw, buckets) for image in images]
    return {f"{h}x{w}": chosen.count((h, w)) for h, w in dict.fromkeys(chosen)}


def _arranged(names: Sequence[str]) -> list[str]:
    return [flag for name in names for flag in ("--arrangement", name)]
