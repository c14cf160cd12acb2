"""Runs a job's parts with Ray Data, again and again until none is missing.

Ray Data restarts actors whose node is lost, but a call that was under way would wait for the
restart, which never comes where the cluster has lost the room for it. So calls are not retried
by Ray: a lost one is dropped, and its part is missing in the next pass.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
import ray.data

from server.ray.detect_folder.errors import JobRefused, JobStopped
from server.ray.detect_folder.folder_job import FolderJob
from server.ray.detect_folder.part_actor import PartActor

# Passes in a row that finish no part. A lost node costs one; a part that kills its worker would
# cost any number.
FRUITLESS_PASSES = 3
# Parts that an actor works at side by side: while the last images of one are at the model, the
# first of the next are decoded.
PARTS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Workers:
    """The actors to use.

    Attributes:
        count: at most so many.
        cpus: that each has for itself, >= 1.
        gpus: that each has; a fraction where several share one.
        device: "cpu", "cuda" or "tensorrt".
        max_batch_size: images of an inference; None takes the device's default.
    """

    count: int
    cpus: int
    gpus: float
    device: str
    max_batch_size: int | None


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part whose results are written: its images, and those of them without detections."""

    images: int
    failed: int


def run_job(
    job: FolderJob,
    workers: Workers,
    report: Callable[[PartDone], None],
    note: Callable[[str], None],
) -> None:
    """Does what is missing of a job.

    Args:
        job: its list is written.
        workers: who does it.
        report: called for each part that gets done.
        note: told what went wrong and is tried again.

    Raises:
        JobStopped: a fault that another try would meet again, or parts that can't be done.
    """
    quiet_ray_data()
    fruitless = 0
    written: set[int] = set()  # a share (NFS) may list other nodes' files a minute late
    missing = job.missing()
    while missing:
        failure: Exception | None = None
        try:
            for part, done in _one_pass(job, missing, workers):
                written.add(part)
                report(done)
        except ray.exceptions.RayError as error:
            failure = error
        before, missing = missing, [part for part in job.missing() if part not in written]
        fruitless = fruitless + 1 if len(missing) == len(before) else 0
        if missing and fruitless < FRUITLESS_PASSES:
            note(f"{len(missing)} parts were lost with a worker or a node; they are done again")
        if fruitless == FRUITLESS_PASSES:
            start, end = job.slice_of(missing[0])
            reason = f": {failure}" if failure else ""
            raise JobStopped(
                f"{len(missing)} parts of {job.parts} were tried {fruitless} times and not "
                f"finished; the first holds images {start} to {end - 1} of the list{reason}"
            )
    job.finish()


def _one_pass(job: FolderJob, parts: list[int], workers: Workers) -> Iterator[tuple[int, PartDone]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours tells images
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    rows = [{"part": part} for part in parts]
    count = min(workers.count, len(parts))
    with warnings.catch_warnings():
        # These two have no other place before Ray 2.64, where the extra's upper bound is.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PartActor,
            fn_constructor_args=(job,),
            fn_constructor_kwargs={
                "device": workers.device,
                "max_batch_size": workers.max_batch_size,
                "cpus": workers.cpus,
                "gpus": workers.gpus,
            },
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=count,
                initial_size=count,
                max_concurrent_calls_per_actor=PARTS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=0,
        )
    for row in done.iter_rows():
        if row["fault"]:
            raise JobStopped(str(row["fault"]))
        yield int(row["part"]), PartDone(int(row["images"]), int(row["failed"]))


def room_for_actors(cpus: int, gpus: float) -> int:
    """How many actors of some CPUs and GPUs the cluster's nodes have room for now.

    Raises:
        JobRefused: for none.
    """
    room = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        there = node["Resources"]
        by_gpu = there.get("GPU", 0) / gpus if gpus else math.inf
        room += math.floor(min(there.get("CPU", 0) / cpus, by_gpu))
    if room == 0:
        raise JobRefused(
            f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs for a worker: see "
            "--cpus-per-worker and --gpus-per-worker"
        )
    return room


def quiet_ray_data() -> None:
    """Leaves to Ray's own log files what it says of plans, and of the calls a lost node drops."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
