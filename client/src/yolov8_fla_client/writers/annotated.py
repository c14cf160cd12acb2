"""Annotated images, in the tree of the images that they were made of."""

from pathlib import Path, PurePosixPath

from yolov8_fla_client.results import AnnotatedImage
from yolov8_fla_client.writers.files import Claims, refuse_full_folder, write_whole

SUFFIXES = {"image/jpeg": (".jpg", ".jpeg"), "image/png": (".png",)}


def output_name(name: str, media_type: str) -> str:
    """The image's own name where that is the format's; else with the format's added."""
    suffixes = SUFFIXES[media_type]
    return name if name.lower().endswith(suffixes) else name + suffixes[0]


class AnnotatedImages:
    """Writes images into a folder.

    Args:
        folder: made where it is missing.
        force: writes over what is there.

    Raises:
        OutputRefused: the folder holds something, and not `force`.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        refuse_full_folder(folder, force=force)
        self._folder = folder
        self._claims = Claims()

    def write(self, result: AnnotatedImage) -> None:
        """Writes an image.

        Raises:
            NameTaken: its file is another's.
        """
        if result.error is not None or result.media_type is None:
            return
        name = result.filename or ""
        output = output_name(str(PurePosixPath(name)), result.media_type)
        self._claims.take(output, name)
        write_whole(self._folder / output, result.image)

    def finish(self) -> None:
        """All is written as it came."""

    def stop(self) -> None:
        """What was written stays."""

    @property
    def rest(self) -> str | None:
        """Where what was done is, for people."""
        return str(self._folder)
