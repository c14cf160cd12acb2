"""The story of one run: look around, list, detect what is missing, say what came of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow.dataset as ds
import ray

from server.api.parameters import read_parameters
from server.inference.artifact import Artifact
from server.inference.devices import CUDA
from server.inference.repository import SelectedVariant, load_model, select_variant
from server.ort import onnxruntime
from server.ray.connection import connected
from server.ray.detect_folder.errors import JobRefused
from server.ray.detect_folder.folder_job import FolderJob, Request, delete_results, path_inside
from server.ray.detect_folder.folders import open_folder
from server.ray.detect_folder.passes import Workers, room_for_actors, run_job
from server.ray.detect_folder.progress import Progress, counted

# Decoding of a GPU's images: more would wait for the GPU, of most models.
MAX_CPUS_BESIDE_GPU = 8


def detect_folder(options: argparse.Namespace) -> None:
    """Runs the job that a command line asks for.

    Raises:
        JobRefused, DeploymentError, InvalidParameter: it can't be run as it was asked for.
        JobStopped: it can't go on.
    """
    artifacts = load_model(options.model.absolute())
    source = open_folder(options.source)
    if not source.exists():
        raise JobRefused(f"{options.source}: there is no such folder")
    try:
        open_folder(options.out).names()  # what can't be a folder is known before Ray has started
    except OSError as error:
        raise JobRefused(f"{options.out}: {error.strerror or error}") from None
    device_now = device_without_ray(options.device)
    if device_now is not None and not options.overwrite:
        # Neither a job that is done already nor a refusal has to wait for Ray.
        done = job_of_before(options, artifacts, device_now, source.address)
        if done is not None and not done.missing():
            done.finish()
            progress = Progress(done.images, done.images)
            progress.say(f"all {done.images:,} images were done before")
            print_summary(done, progress)
            return
    with connected(options.address):
        device, why = device_for(options.device)
        artifact, reason = chosen(artifacts, device, options.precision)
        workers = plan_workers(options, device)
        request = request_of(options, artifact, source.address)
        job, resumed = open_job(options, request)
        missing = job.missing()
        todo = job.images_in(missing)
        progress = Progress(job.images, job.images - todo)
        others = f" ({job.others:,} other files are left out)" if job.others else ""
        progress.say(f"{job.images:,} images in {request.source}{others}")
        if resumed:
            progress.say(
                f"{job.images - todo:,} were done before; what came into the folder since is not "
                "looked at"
            )
        progress.say(f"{request.model_name} {request.model_version}, {reason}")
        progress.say(f"{workers.count} workers on {device} ({why})")
        run_job(job, workers, progress.part_done, progress.say)
    print_summary(job, progress)


def job_of_before(
    options: argparse.Namespace, artifacts: Sequence[Artifact], device: str, source: str
) -> FolderJob | None:
    """The job whose results are there, if any.

    Raises:
        JobRefused, InvalidParameter: it is another one than is asked for, or none that can be.
    """
    artifact, _ = chosen(artifacts, device, options.precision)
    request = request_of(options, artifact, source)
    out = open_folder(options.out).address
    return FolderJob.open(request, out, images_per_part=options.images_per_part)


def chosen(artifacts: Sequence[Artifact], device: str, precision: str) -> SelectedVariant:
    """One file for all nodes, whatever they would choose by themselves."""
    return select_variant(artifacts, "cuda:0" if device == "cuda" else device, precision)


def print_summary(job: FolderJob, progress: Progress) -> None:
    """Says how many images a job that is done has, and what was wrong with some."""
    rows, errors = counted(results(job.out))
    progress.say(f"done: {rows:,} images in {job.out}")
    for code, count in errors.most_common():
        progress.say(f"  {count:,} without detections: {code}")


def open_job(options: argparse.Namespace, request: Request) -> tuple[FolderJob, bool]:
    """The job, begun or found; and whether it was found."""
    out = open_folder(options.out).address
    if options.overwrite:
        delete_results(out)
    job = FolderJob.open(request, out, images_per_part=options.images_per_part)
    if job is not None:
        return job, True
    left_out = path_inside(out, request.source)
    begun = FolderJob.begin(
        request, out, images_per_part=options.images_per_part, left_out=left_out
    )
    return begun, False


def request_of(options: argparse.Namespace, artifact: Artifact, source: str) -> Request:
    """What decides about the results.

    Raises:
        InvalidParameter: a threshold or a class that the model does not have.
    """
    names = ("conf", "iou", "max_det", "classes", "agnostic_nms")
    values = [(name, getattr(options, name)) for name in names]
    parameters = read_parameters(values, artifact.metadata.class_names)
    return Request(
        source=source,
        all_files=options.all_files,
        model=str(artifact.path),
        model_name=artifact.metadata.name,
        model_version=artifact.version,
        precision=artifact.metadata.precision,
        parameters=parameters.detect,
        max_image_bytes=options.max_image_bytes,
        max_image_pixels=options.max_image_pixels,
        jpeg_dct_scaling=options.jpeg_dct_scaling == "true",
    )


def device_without_ray(requested: str) -> str | None:
    """Where workers run the model, if that is known before the cluster's GPUs are."""
    if requested != "auto":
        return requested
    return None if CUDA in onnxruntime().get_available_providers() else "cpu"


def device_for(requested: str) -> tuple[str, str]:
    """Where all workers run the model, and why."""
    if requested != "auto":
        return requested, "asked for"
    gpus = ray.cluster_resources().get("GPU", 0)
    if not gpus:
        return "cpu", "the cluster has no GPU"
    if CUDA not in onnxruntime().get_available_providers():
        return (
            "cpu",
            f"the cluster has {gpus:g} GPUs, but this is ONNX Runtime's build without CUDA",
        )
    return "cuda", f"the cluster has {gpus:g} GPUs"


def plan_workers(options: argparse.Namespace, device: str) -> Workers:
    """How many workers, with what.

    Raises:
        JobRefused: the cluster has no room for one.
    """
    on_gpu = device != "cpu"
    gpus = options.gpus_per_worker if options.gpus_per_worker is not None else float(on_gpu)
    if not on_gpu and gpus:
        raise JobRefused("--gpus-per-worker is for --device cuda or tensorrt")
    if on_gpu and gpus <= 0:
        raise JobRefused(f"--gpus-per-worker is {gpus:g}, it must be over 0")
    cpus = options.cpus_per_worker or (cpus_beside_gpu(gpus) if on_gpu else 1)
    count = options.concurrency or room_for_actors(cpus, gpus)
    return Workers(count, cpus, gpus, device, options.batch_size)


def cpus_beside_gpu(gpus: float) -> int:
    """CPUs for each worker of some GPUs, so that every GPU of every node finds a worker."""
    shares = [
        node["Resources"].get("CPU", 0) * gpus / node["Resources"]["GPU"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0)
    ]
    return max(1, min(MAX_CPUS_BESIDE_GPU, int(min(shares, default=1))))


def results(out: str) -> ds.Dataset:
    """The results of a job, as pyarrow reads them."""
    return ds.dataset(out if "://" in out else str(Path(out)), format="parquet")
