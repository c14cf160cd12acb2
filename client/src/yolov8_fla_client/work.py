"""One run of `yolov8-fla-client detect`: look at the images, ask, write, say what came of it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yolov8_fla_client.async_client import AsyncClient
from yolov8_fla_client.errors import DetectClientError
from yolov8_fla_client.images import NamedImage, images_below, shown_name
from yolov8_fla_client.parameters import Parameters
from yolov8_fla_client.progress import Progress
from yolov8_fla_client.results import AnnotatedImage, ImageResult, ModelDescription
from yolov8_fla_client.writers.annotated import AnnotatedImages
from yolov8_fla_client.writers.coco import Coco
from yolov8_fla_client.writers.files import NameTaken, OutputRefused
from yolov8_fla_client.writers.jsonl import PARTIAL, JsonLines
from yolov8_fla_client.writers.yolo import YoloLabels


class NothingToDo(DetectClientError):
    """The arguments name no image, or what is not there."""


class ModelChanged(DetectClientError):
    """The server answers with another model than it had when the run began."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asked for.

    Attributes:
        sources: folders and files, at least one.
        out: where to write; None for standard output, of JSON Lines only.
        form: "jsonl", "coco", "yolo" or "images".
        parameters: of the detection.
        all_files: of folders, also those whose names do not end as an image's.
        force: writes over what is there.
        resume: goes on with what is there, of JSON Lines only.
        with_scores: YOLO labels have a sixth column.
        in_flight: requests at once.
        images_per_request: at most.
    """

    sources: Sequence[Path]
    out: Path | None
    form: str
    parameters: Parameters
    all_files: bool = False
    force: bool = False
    resume: bool = False
    with_scores: bool = False
    in_flight: int = 4
    images_per_request: int = 4


@dataclass(slots=True)
class Tally:
    """What came of a run; `before` were done by the run that this one goes on with."""

    done: int = 0
    failed: int = 0
    truncated: int = 0
    before: int = 0


class Writer(Protocol):
    """What all forms of output have in common."""

    # Of JSON Lines and the like an ImageResult; of images an AnnotatedImage.
    def write(self, result: Any) -> None:
        """Takes one result; may raise `NameTaken`."""

    def finish(self) -> None:
        """All results have come."""

    def stop(self) -> None:
        """No more come; what has stays. May be called after `finish`."""

    @property
    def rest(self) -> str | None:
        """After `stop`: where what was done is."""


class Images:
    """The images that arguments name, under names that differ: relative to the folder of all.

    Args:
        sources: folders and files; one that is named twice, or inside another, counts once.
        all_files: see `Job`.
        out: a folder or file that is written, and so left out.

    Raises:
        NothingToDo: a source is not there.
    """

    def __init__(self, sources: Sequence[Path], *, all_files: bool, out: Path | None) -> None:
        for each in sources:
            if not each.exists():
                raise NothingToDo(f"{each}: there is no such file or folder")
        # Not resolved: a link has the name that it is given under.
        absolute = [Path(os.path.abspath(each)) for each in sources]  # noqa: PTH100
        tops = [each if each.is_dir() else each.parent for each in absolute]
        self.base = Path(os.path.commonpath(tops))
        folders = [each for each in dict.fromkeys(absolute) if each.is_dir()]
        self._folders = [f for f in folders if not any(o in f.parents for o in folders)]
        files = [each for each in dict.fromkeys(absolute) if not each.is_dir()]
        self._files = [f for f in files if not any(o in f.parents for o in self._folders)]
        self._all_files = all_files
        self._left_out = [out, out.parent / (out.name + PARTIAL)] if out is not None else []

    def __iter__(self) -> Iterator[NamedImage]:
        for file in self._files:
            yield NamedImage(shown_name(str(file.relative_to(self.base))), file)
        for folder in self._folders:
            prefix = shown_name(str(folder.relative_to(self.base)))
            found = images_below(folder, all_files=self._all_files, left_out=self._left_out)
            for each in found:
                name = each.name if prefix == "." else f"{prefix}/{each.name}"
                yield NamedImage(name, each.image)

    def count(self) -> int:
        """How many there are now.

        Raises:
            NothingToDo: none.
        """
        if count := sum(1 for _ in self):
            return count
        raise NothingToDo(f"there are no images in {self.base}; --all-files takes any file")


async def run(job: Job, client: AsyncClient, images: Images, progress: Progress) -> Tally:
    """Does a job; a run that ends early, for whatever reason, leaves what was done.

    Raises:
        OutputRefused: it can't be written as asked; nothing was.
        DetectClientError: the server ended it.
    """
    # None for images with boxes, that do not tell their model.
    model = None if job.form == "images" else await client.model()
    writer, done = _writer(job, model, images)
    tally = Tally(before=len(done))
    progress.skip(len(done))
    remaining = (each for each in images if each.name not in done)
    try:
        async with aclosing(_results(job, client, remaining)) as results:
            async for each in results:
                _refuse_another(model, each)
                _take(each, writer, tally, progress)
        writer.finish()
    except BaseException:
        writer.stop()
        if tally.done and writer.rest is not None:
            progress.say(f"{tally.done} images were done: {writer.rest}")
        raise
    return tally


def _refuse_another(model: ModelDescription | None, result: ImageResult | AnnotatedImage) -> None:
    # One file has one model's results: class ids of another would mean something else.
    answered = result.model if isinstance(result, ImageResult) else None
    if model is not None and answered is not None and answered.version != model.version:
        raise ModelChanged(
            f"{result.filename}: the server now has model version {answered.version}; "
            f"this run began with {model.version}"
        )


def _take(
    result: ImageResult | AnnotatedImage, writer: Writer, tally: Tally, progress: Progress
) -> None:
    fault = None if result.error is None else f"{result.error.code}: {result.error.detail}"
    try:
        writer.write(result)
    except NameTaken as error:
        fault = str(error)
    if fault is None:
        tally.done += 1
    else:
        tally.failed += 1
        progress.say(f"{result.filename}: {fault}")
    if isinstance(result, ImageResult) and result.truncated:
        tally.truncated += 1
    progress.done(result)


async def _results(
    job: Job, client: AsyncClient, remaining: Iterator[NamedImage]
) -> AsyncGenerator[ImageResult | AnnotatedImage, None]:
    # In their order, so that the same images give the same files.
    chosen = job.parameters.arguments()
    if job.form == "images":
        annotated = client.stream_annotated(
            remaining, in_flight=job.in_flight, ordered=True, **chosen
        )
        async with aclosing(annotated) as images:
            async for image in images:
                yield image
        return
    detected = client.stream(
        remaining,
        in_flight=job.in_flight,
        images_per_request=job.images_per_request,
        ordered=True,
        **chosen,
    )
    async with aclosing(detected) as results:
        async for result in results:
            yield result


def _writer(job: Job, model: ModelDescription | None, images: Images) -> tuple[Writer, Set[str]]:
    """What writes the job's form, and the images that were done before."""
    if model is None:
        assert job.out is not None
        # Else an image's own file could be written over with boxes in it.
        base = images.base.resolve()
        if job.out.resolve() in (base, *base.parents):
            raise OutputRefused(f"{job.out} is where the images are; write them elsewhere")
        return AnnotatedImages(job.out, force=job.force), frozenset()
    if job.form == "jsonl":
        lines = JsonLines(
            job.out, job.parameters.chosen(), model, force=job.force, resume=job.resume
        )
        return lines, lines.done
    assert job.out is not None
    if job.form == "coco":
        return Coco(job.out, model, force=job.force), frozenset()
    labels = YoloLabels(job.out, model, with_scores=job.with_scores, force=job.force)
    return labels, frozenset()
