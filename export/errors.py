"""What stops an export; each is told to the user in one line.

ExportError
├── CheckpointRefused    the file cannot be loaded, or asks for what we do not load
├── ModelUnsupported     loaded, but not a detector that the artifact can hold
├── DatasetInvalid       the images or labels of --data or --calibration can't be used
├── OutputExists         the output is there already and --force was not given
├── VerificationFailed   the artifact does not answer as its source does
└── AccuracyLost         a reduced precision costs more accuracy than it may, or that is unknown
"""

from collections.abc import Iterator
from contextlib import contextmanager

import model.errors


class ExportError(Exception):
    """Base of all errors the export raises on purpose; nothing has been written."""


class CheckpointRefused(ExportError, model.errors.CheckpointRefused):
    """The file is missing, damaged, or names something outside the allow-list."""


class ModelUnsupported(ExportError):
    """The model, or the size asked for, has no artifact."""


class DatasetInvalid(ExportError):
    """A data set, a folder of images or a label file is missing or can't be read."""


class OutputExists(ExportError):
    """Something stands where the artifact would be written."""


class VerificationFailed(ExportError):
    """The artifact and its source disagree by more than the limits."""


class AccuracyLost(ExportError):
    """A reduced precision was not shown to keep the accuracy of its source."""


@contextmanager
def as_export_errors() -> Iterator[None]:
    """Tells what the reader of checkpoints refuses as an error of the export."""
    try:
        yield
    except model.errors.CheckpointRefused as refused:
        raise CheckpointRefused(refused) from None
