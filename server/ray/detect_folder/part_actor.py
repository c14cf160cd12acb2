"""The Ray actor that does parts of a job: one engine, kept from part to part."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from server.errors import DeploymentError
from server.inference.artifact import Artifact, load_artifact
from server.inference.engine import Engine
from server.ray.detect_folder.detecting import Detecting, EngineLost, Limits, Outcome
from server.ray.detect_folder.errors import JobError, JobRefused
from server.ray.detect_folder.folder_job import FolderJob
from server.ray.detect_folder.folders import Folder, open_folder
from server.ray.detect_folder.result_rows import ImageError, to_parquet
from server.ray.memory_share import memory_share

Columns = dict[str, Any]  # arrays of one length


class PartActor:
    """Detects parts; Ray Data makes some of these, on whatever nodes have room.

    A fault that another try would meet again comes back as a value, so that the job ends and says
    why. Whatever else goes wrong is raised or ends the process; the part is then done by another.

    Args:
        job: what to do.
        device: "cpu", "cuda" or "tensorrt".
        max_batch_size: images of an inference; None takes the device's default.
        cpus: that this actor may use, >= 1.
        gpus: likewise; a fraction where several share one.
        memory: by CPUs and GPUs, what this process may use; its share of the node by default.
    """

    def __init__(
        self,
        job: FolderJob,
        *,
        device: str,
        max_batch_size: int | None,
        cpus: int,
        gpus: float = 0.0,
        memory: Callable[[float, float], int] = memory_share,
    ) -> None:
        self._job = job
        self._detecting: Detecting | None = None
        self._fault: str | None = None
        try:
            source, artifact = self._look_around()
            engine = Engine.open(
                [artifact], device=device, max_batch_size=max_batch_size, cpus=cpus
            )
            engine.warm_up()
        except (DeploymentError, JobError) as error:
            self._fault = str(error)
            return
        request = job.request
        limits = Limits(request.max_image_bytes, request.max_image_pixels, request.jpeg_dct_scaling)
        self._class_names = artifact.metadata.class_names
        self._detecting = Detecting(
            engine,
            source,
            request.parameters,
            limits,
            cpus=cpus,
            memory_bytes=memory(cpus, gpus),
        )

    def __call__(self, batch: Columns) -> Columns:
        """Does one part and writes its results.

        Args:
            batch: "part": one number.

        Returns:
            "part" again; "images", of which "failed" have no detections; "fault", the text of one,
            or "".
        """
        part = int(batch["part"][0])
        if self._detecting is None:
            return _part_report(part, fault=f"node {ray.util.get_node_ip_address()}: {self._fault}")
        try:
            outcomes = self._do(self._detecting, part)
        except EngineLost as error:
            # A GPU's context that is lost stays lost in its process; Ray starts another.
            print(f"the model has stopped, this worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except Exception as error:  # whatever it is, Ray Data would only drop the part
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            return _part_report(part, fault=f"node {ray.util.get_node_ip_address()}: {reason}")
        return _part_report(
            part, len(outcomes), sum(isinstance(each, ImageError) for each in outcomes)
        )

    def __del__(self) -> None:
        if self._detecting is not None:
            self._detecting.close()

    def _do(self, detecting: Detecting, part: int) -> list[Outcome]:
        paths = self._job.paths_of(part)
        outcomes = detecting.detect(paths)
        content = to_parquet(paths, outcomes, self._class_names, self._job.metadata())
        self._job.write_part(part, content)
        return outcomes

    def _look_around(self) -> tuple[Folder, Artifact]:
        """The images and the model, as this node sees them."""
        request = self._job.request
        source = open_folder(request.source)
        if not source.exists():
            raise JobRefused(
                f"{request.source} is not there; every node needs to see the images by this path"
            )
        if FolderJob.open(request, self._job.out, images_per_part=None) is None:
            raise JobRefused(
                f"{self._job.out} is empty; every node needs to see the results by this path"
            )
        artifact = load_artifact(Path(request.model))
        if artifact.version != request.model_version:
            raise JobRefused(
                f"{request.model} has version {artifact.version} and not "
                f"{request.model_version}; every node needs the same file"
            )
        return source, artifact


def _part_report(part: int, images: int = 0, failed: int = 0, *, fault: str = "") -> Columns:
    return {
        "part": np.array([part]),
        "images": np.array([images]),
        "failed": np.array([failed]),
        "fault": np.array([fault], dtype=object),
    }
