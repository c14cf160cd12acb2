"""Ray Data over many images on two local nodes, one of which is killed half-way.

    python -m benchmarks.micro.ray_folder --photos FOLDER [--images 10000]

Three runs over the same images: the server's pipeline in one process on all CPUs over the first
half; the job on two nodes, with the second killed when half of the parts are there; the pipeline
again over the other half. Prints a JSON object with what came of it.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from benchmarks.micro.ray_nodes import TwoNodes, two_nodes
from server.host import available_cpus
from server.inference.artifact import Artifact
from server.inference.engine import Engine
from server.inference.repository import DEFAULT_MODEL, load_model, select_variant
from server.ray.detect_folder.detecting import Detecting, Limits
from server.ray.detect_folder.folders import LocalFolder
from server.vision.nms import DetectParameters

LIMITS = Limits(bytes=64 * 2**20, pixels=50_000_000, dct_scaling=True)
LOOK_S = 0.2
AT_ONCE = 1000  # images handed to the pipeline in one process


def main() -> int:
    """Measures, prints, and tells by the exit code whether every image is there once."""
    options = parser().parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    if not photos:
        sys.exit(f"error: {options.photos}: no *.jpg is there")
    artifact = select_variant(load_model(options.model.absolute()), "cpu").artifact
    with tempfile.TemporaryDirectory(prefix="ray-folder-") as scratch:
        folder, out = Path(scratch, "images"), Path(scratch, "out.parquet")
        paths = fill(folder, photos, options.images)
        middle = len(paths) // 2
        before_s = one_process(artifact, folder, paths[:middle])
        intact: dict[str, Any] | None = None
        with two_nodes(cpus=options.cpus_per_node) as nodes:
            if options.intact:
                intact_out = Path(scratch, "intact.parquet")
                intact = with_ray(nodes, folder, intact_out, options, len(paths), kill=False)
            killed = with_ray(nodes, folder, out, options, len(paths), kill=True)
        after_s = one_process(artifact, folder, paths[middle:])
        rows = ds.dataset(str(out), format="parquet").to_table(columns=["path", "error_code"])
        times = Counter(rows.column("path").to_pylist())
        alone = len(paths) / (before_s + after_s)
        found: dict[str, Any] = {
            "images": len(paths),
            "rows": rows.num_rows,
            "twice": sum(count > 1 for count in times.values()),
            "missing": len({path.decode() for path in paths} - times.keys()),
            "with_error": rows.num_rows - rows.column("error_code").null_count,
            "artifact": f"{artifact.path.name} {artifact.version}",
            "cpus": available_cpus(),
            "one_process_images_per_s": round(alone, 2),
            "one_process_halves_s": [round(before_s, 1), round(after_s, 1)],
            "one_node_killed": killed | ratio(killed, alone),
        }
        if intact is not None:
            found["both_nodes_live"] = intact | ratio(intact, alone)
        print(json.dumps(found, indent=1))
    return 0 if found["rows"] == len(paths) and not found["twice"] + found["missing"] else 1


def fill(folder: Path, photos: list[Path], images: int) -> list[bytes]:
    """Links to photos, again and again, in folders of a thousand; their paths inside `folder`."""
    paths = []
    for i in range(images):
        link = folder / f"{i // 1000:03}" / f"{i:06}-{photos[i % len(photos)].name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photos[i % len(photos)].absolute())
        paths.append(os.fsencode(link.relative_to(folder)))
    return paths


def one_process(artifact: Artifact, folder: Path, paths: list[bytes]) -> float:
    """Seconds that the server's pipeline takes in this process, on all CPUs."""
    cpus = available_cpus()
    engine = Engine.open([artifact], device="cpu", cpus=cpus)
    engine.warm_up()
    parameters = DetectParameters()
    with Detecting(engine, LocalFolder(folder), parameters, LIMITS, cpus=cpus) as detecting:
        detecting.detect(paths[:32])
        started = time.perf_counter()
        for start in range(0, len(paths), AT_ONCE):
            detecting.detect(paths[start : start + AT_ONCE])
        return time.perf_counter() - started


def with_ray(
    nodes: TwoNodes,
    folder: Path,
    out: Path,
    options: argparse.Namespace,
    images: int,
    *,
    kill: bool,
) -> dict[str, Any]:
    """Runs the job; the clock starts with its first result, as workers take seconds to start."""
    command = [
        *(sys.executable, "-m", "server.ray.detect_folder", str(folder), str(out)),
        *("--address", nodes.address, "--device", "cpu", "--model", str(options.model)),
        *("--cpus-per-worker", str(options.cpus_per_node)),
    ]
    begun = time.perf_counter()
    killed: dict[str, Any] = {}
    first_s: float | None = None
    first_parts = 0
    with subprocess.Popen(command) as job:
        try:
            while job.poll() is None:
                parts = done_parts(out)
                if first_s is None and parts:
                    first_s, first_parts = time.perf_counter(), parts
                if kill and not killed and parts and parts >= all_parts(out) / 2:
                    killed = {
                        "killed_at_part": parts,
                        "of_parts": all_parts(out),
                        "killed_processes": nodes.kill_second(),
                        "both_s": round(time.perf_counter() - (first_s or begun), 1),
                    }
                time.sleep(LOOK_S)
        except BaseException:
            job.send_signal(signal.SIGTERM)
            raise
    ended = time.perf_counter()
    assert job.returncode == 0, f"the job ended with {job.returncode}"
    assert first_s is not None
    rest = images * (1 - first_parts / all_parts(out))
    return {
        "images_per_s": round(rest / (ended - first_s), 2),
        "images_per_s_with_start": round(images / (ended - begun), 2),
        "total_s": round(ended - begun, 1),
        **killed,
    }


def ratio(measured: dict[str, Any], alone: float) -> dict[str, float]:
    """Throughput as a share of one process'."""
    return {
        "ratio": round(measured["images_per_s"] / alone, 3),
        "ratio_with_start": round(measured["images_per_s_with_start"] / alone, 3),
    }


def done_parts(out: Path) -> int:
    """Parts whose results are written."""
    return len(list(out.glob("part-*.parquet")))


def all_parts(out: Path) -> int:
    """Parts of the job, as it noted them."""
    written: dict[str, int] = json.loads((out / "_job" / "job.json").read_text())
    return math.ceil(written["images"] / written["images_per_part"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    program = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.ray_folder", description=__doc__
    )
    program.formatter_class = argparse.RawDescriptionHelpFormatter
    program.add_argument("--photos", type=Path, required=True, help="folder of *.jpg")
    program.add_argument("--images", type=int, default=10_000)
    program.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    program.add_argument("--cpus-per-node", type=int, default=max(1, available_cpus() // 2))
    program.add_argument("--intact", action="store_true", help="measure without a kill, too")
    return program


if __name__ == "__main__":
    sys.exit(main())
