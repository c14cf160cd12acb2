"""JSON Lines: one line an image, written as they come, so that a run can go on where it ended."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from yolov8_fla_client.results import ImageResult, ModelDescription
from yolov8_fla_client.writers.files import OutputRefused, refuse_what_is_there, synced

PARTIAL = ".partial"


def row_of(result: ImageResult, parameters: Mapping[str, object]) -> dict[str, Any]:
    """A line's object: the fields of `ImageResult`, without timings and with the parameters."""
    row = asdict(result)
    del row["timings_ms"]
    return row | {"parameters": dict(parameters)}


class JsonLines:
    """Writes lines to `<path>.partial`, which becomes `<path>` at the end; or to standard output.

    Args:
        path: the file; None for standard output.
        parameters: what was chosen, for the lines.
        force: writes over what is there.
        resume: goes on with what is there, of a run that ended early or of one that is done.
        model: what is served now; what is there has to be of it.

    Raises:
        OutputRefused: a file is there and neither `force` nor `resume`, or what is there is of
            another model or of other parameters, or is no file of ours.
    """

    def __init__(
        self,
        path: Path | None,
        parameters: Mapping[str, object],
        model: ModelDescription,
        *,
        force: bool = False,
        resume: bool = False,
    ) -> None:
        self._path = path
        self._parameters = dict(parameters)
        self._model = model
        self.done: set[str] = set()
        self._stream: IO[str]
        if path is None:
            self._stream = sys.stdout
            return
        partial = path.with_name(path.name + PARTIAL)
        refuse_what_is_there(path, force=force or resume)
        if partial.exists() and not (force or resume):
            raise OutputRefused(
                f"{partial} is of a run that ended early: --resume goes on, --force begins anew"
            )
        if resume:
            self._keep(partial if partial.exists() else path, partial)
        self._partial = partial
        self._stream = partial.open("a" if resume else "w", encoding="utf-8")

    def write(self, result: ImageResult) -> None:
        """Writes a line; it is there for others to read at once."""
        # ensure_ascii: a line is one line to every reader, also with U+2028 in a class' name.
        print(json.dumps(row_of(result, self._parameters)), file=self._stream, flush=True)

    def finish(self) -> None:
        """The file is complete, under its name."""
        self.stop()
        if self._path is not None:
            self._partial.replace(self._path)

    def stop(self) -> None:
        """What was written stays."""
        if self._path is None:
            self._stream.flush()
        elif not self._stream.closed:
            self._stream.flush()
            synced(self._stream.fileno())
            self._stream.close()

    @property
    def rest(self) -> str | None:
        """Where the lines of a run that ended early are, for people."""
        return None if self._path is None else f"{self._partial}; --resume goes on from there"

    def _keep(self, before: Path, partial: Path) -> None:
        """Takes over the whole lines without errors; those with errors are tried again."""
        kept = partial.with_name(partial.name + ".new")
        try:
            with kept.open("w", encoding="utf-8") as out:
                if before.exists():
                    with before.open(encoding="utf-8") as lines:
                        for number, line in enumerate(lines, 1):
                            if not line.endswith("\n"):
                                break  # torn when the run before was killed
                            self._keep_line(line, out, f"{before}, line {number}")
                out.flush()
                os.fsync(out.fileno())
            kept.replace(partial)
        except UnicodeDecodeError:
            raise OutputRefused(f"{before} is no file of such lines") from None
        finally:
            kept.unlink(missing_ok=True)

    def _keep_line(self, line: str, out: IO[str], where: str) -> None:
        try:
            row = json.loads(line)
            name, error = row["filename"], row["error"]
            version = None if row["model"] is None else row["model"]["version"]
            parameters = row["parameters"]
            known = name in self.done
        except (ValueError, KeyError, TypeError, RecursionError):
            raise OutputRefused(f"{where} is not of such a run") from None
        if error is not None or known:
            return
        if version != self._model.version:
            raise OutputRefused(
                f"{where} is of model version {version}; the server has {self._model.version}: "
                "--force begins anew"
            )
        if parameters != self._parameters:
            raise OutputRefused(
                f"{where} was detected with {parameters}, not with {self._parameters}: "
                "--force begins anew"
            )
        self.done.add(name)
        out.write(line)
