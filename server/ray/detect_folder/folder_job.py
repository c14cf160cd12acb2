"""One job over one folder: what it was asked for, what of it is done, and where that is written.

OUT.parquet/
├── part-000000-3f9c01ab.parquet …   results: a Parquet data set, of which every row is there once
├── _SUCCESS                         there when all is done
└── _job/                            of no interest to who reads results: names with _ are skipped
    ├── job.json                     what was asked for; written when the list is
    └── images                       the list

The eight digits are the list's, drawn anew for each. A worker of a job that was begun anew since,
on a node that nobody reaches any more, can neither add to the results nor take from them.
"""

import json
import math
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Self

from server.ray.detect_folder.errors import JobRefused, JobStopped
from server.ray.detect_folder.folders import Folder, open_folder, write_bytes
from server.ray.detect_folder.image_list import NAME as LIST
from server.ray.detect_folder.image_list import read_list, write_list
from server.vision.nms import DetectParameters

JOB = "_job/job.json"
DONE = "_SUCCESS"
FORMAT = 1
PART = re.compile(r"part-([0-9]{6,})-([0-9a-f]{8})\.parquet")
UNFINISHED = re.compile(rf"\.{PART.pattern}\.")  # see `LocalFolder.write`
# Files of at least so many images are a size that readers of Parquet like; smaller jobs have
# smaller parts, so that there is something to share out.
MAX_IMAGES_PER_PART, MIN_IMAGES_PER_PART, WANTED_PARTS = 1000, 25, 200


@dataclass(frozen=True, slots=True)
class Request:
    """What decides about results; two jobs that are equal in it have equal results.

    Attributes:
        source: the address of the folder.
        all_files: also files whose names do not end as an image's.
        model: path of the artifact, one file.
        model_name, model_version, precision: the artifact's.
        parameters: of the postprocessing.
        max_image_bytes, max_image_pixels: of one image.
        jpeg_dct_scaling: large JPEGs are decoded at reduced scale.
    """

    source: str
    all_files: bool
    model: str
    model_name: str
    model_version: str
    precision: str
    parameters: DetectParameters
    max_image_bytes: int
    max_image_pixels: int
    jpeg_dct_scaling: bool

    def as_json(self) -> dict[str, Any]:
        """Values that JSON has, and that `differences` compares."""
        return dict(json.loads(json.dumps(asdict(self))))

    def differences(self, written: dict[str, Any]) -> list[str]:
        """What another job was asked for otherwise, in words; where its model lay is no matter."""
        ours, theirs = _flat(self.as_json()), _flat(written)
        names = sorted((ours.keys() | theirs.keys()) - {"model"})
        return [
            f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True, slots=True)
class FolderJob:
    """A job whose list is written.

    Attributes:
        out: the address of the results' folder.
        list_id: eight hexadecimal digits, which no other list has.
        images: in the list.
        others: files that were left out of it for their names.
        images_per_part: of every part but the last.
    """

    request: Request
    out: str
    list_id: str
    images: int
    others: int
    images_per_part: int

    @property
    def parts(self) -> int:
        """How many there are."""
        return math.ceil(self.images / self.images_per_part)

    def slice_of(self, part: int) -> tuple[int, int]:
        """Where in the list a part begins and ends."""
        start = part * self.images_per_part
        return start, min(start + self.images_per_part, self.images)

    def missing(self) -> list[int]:
        """The parts that are still to be done."""
        matches = map(PART.fullmatch, open_folder(self.out).names())
        done = {int(match[1]) for match in matches if match and match[2] == self.list_id}
        return [part for part in range(self.parts) if part not in done]

    def images_in(self, parts: list[int]) -> int:
        """How many images some parts have."""
        return sum(end - start for start, end in map(self.slice_of, parts))

    def metadata(self) -> dict[str, str]:
        """What every file of results says about itself."""
        return {"yolov8_fla": json.dumps(self.request.as_json())}

    def paths_of(self, part: int) -> list[bytes]:
        """The images of a part.

        Raises:
            JobStopped: another job was begun in its place.
        """
        return read_list(open_folder(self.out), self.list_id, *self.slice_of(part))

    def write_part(self, part: int, content: bytes) -> None:
        """Writes the results of a part.

        Raises:
            JobStopped: another job was begun in its place.
        """
        folder = open_folder(self.out)
        self._stop_if_replaced(folder)
        write_bytes(folder, self.part_name(part), content)

    def part_name(self, part: int) -> str:
        """The file of a part's results."""
        return f"part-{part:06}-{self.list_id}.parquet"

    def finish(self) -> None:
        """Marks the job as done, as Spark does, and clears away what others left.

        That is: half of a file of a worker that was killed, and whole ones of a job whose place
        this one took.

        Raises:
            JobStopped: another job was begun in its place.
        """
        folder = open_folder(self.out)
        self._stop_if_replaced(folder)
        for name in folder.names():
            part = PART.fullmatch(name)
            if UNFINISHED.match(name) or (part and part[2] != self.list_id):
                folder.delete(name)
        write_bytes(folder, DONE, b"")

    def _stop_if_replaced(self, folder: Folder) -> None:
        written = _read_job(folder)
        if written is None or written.get("list_id") != self.list_id:
            raise JobStopped(f"another job was begun in {self.out}, or its results were deleted")

    @classmethod
    def open(cls, request: Request, out: str, *, images_per_part: int | None) -> Self | None:
        """The job that a folder of results belongs to; None where there is none yet.

        Raises:
            JobRefused: the folder holds results of another job, or something else.
        """
        folder = open_folder(out)
        names = [name for name in folder.names() if not name.startswith(".")]
        if any(name not in (DONE, "_job") and not PART.fullmatch(name) for name in names):
            raise JobRefused(f"{out} holds something else than results; choose another place")
        written = _read_job(folder)
        if written is None:
            if [name for name in names if name != "_job"]:
                raise JobRefused(f"{out} holds results without {JOB}; choose another place")
            return None
        if written.get("format") != FORMAT:
            raise JobRefused(f"{out} was made by another version of this program")
        differences = request.differences(written["request"])
        if images_per_part not in (None, written["images_per_part"]):
            differences.append(
                f"images_per_part is {written['images_per_part']} there and {images_per_part} here"
            )
        if differences:
            raise JobRefused(
                f"{out} holds results of another job: {'; '.join(differences)}. Choose another "
                "place, or say --overwrite to delete them"
            )
        names_and_counts = ("list_id", "images", "others", "images_per_part")
        return cls(request, out, *(written[name] for name in names_and_counts))

    @classmethod
    def begin(
        cls, request: Request, out: str, *, images_per_part: int | None, left_out: bytes | None
    ) -> Self:
        """Writes the list of a new job.

        Raises:
            JobRefused: there are no images.
        """
        folder, source = open_folder(out), open_folder(request.source)
        list_id = uuid.uuid4().hex[:8]
        listed = write_list(source, folder, list_id, all_files=request.all_files, left_out=left_out)
        if not listed.images:
            folder.delete(LIST)
            hint = f", only {listed.others} files of other names (--all-files takes all)"
            raise JobRefused(f"{request.source}: no images{hint if listed.others else ''}")
        size = images_per_part or min(
            MAX_IMAGES_PER_PART, max(MIN_IMAGES_PER_PART, math.ceil(listed.images / WANTED_PARTS))
        )
        job = cls(request, out, list_id, listed.images, listed.others, size)
        written = {
            "format": FORMAT,
            "request": request.as_json(),
            "list_id": list_id,
            "images": job.images,
            "others": job.others,
            "images_per_part": job.images_per_part,
        }
        write_bytes(folder, JOB, json.dumps(written, indent=1).encode())
        return job


def delete_results(out: str) -> None:
    """Deletes a job's files, and nothing else.

    Raises:
        JobRefused: the folder is not one of results.
    """
    folder = open_folder(out)
    if folder.names() and _read_job(folder) is None:
        raise JobRefused(f"{out} holds no job's results, so nothing is deleted there")
    for name in folder.names():
        if PART.fullmatch(name) or name == DONE:
            folder.delete(name)
    folder.delete(JOB)
    folder.delete(LIST)


def path_inside(out: str, source: str) -> bytes | None:
    """Where the results lie in the folder of the images, if they do."""
    try:
        inside = PurePath(out).relative_to(source)
    except ValueError:
        return None
    return bytes(inside)


def _read_job(folder: Folder) -> dict[str, Any] | None:
    try:
        with folder.open(JOB) as file:
            return dict(json.loads(file.read()))
    except FileNotFoundError:
        return None
    except (NotADirectoryError, ValueError) as error:
        raise JobRefused(f"{folder.address}/{JOB} can't be read: {error}") from None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One level of names, with the parameters' among them."""
    parameters: dict[str, Any] = values["parameters"]
    return {name: value for name, value in values.items() if name != "parameters"} | parameters
