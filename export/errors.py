"""What stops an export; each is told to the user in one line.

ExportError
├── CheckpointRefused    the file cannot be loaded, or asks for what we do not load
├── ModelUnsupported     loaded, but not a detector that the artifact can hold
├── OutputExists         the output is there already and --force was not given
└── VerificationFailed   the artifact does not answer as the checkpoint does
"""


class ExportError(Exception):
    """Base of all errors the export raises on purpose; nothing has been written."""


class CheckpointRefused(ExportError):
    """The file is missing, damaged, or names something outside the allow-list."""


class ModelUnsupported(ExportError):
    """The model, or the size asked for, has no artifact."""


class OutputExists(ExportError):
    """Something stands where the artifact would be written."""


class VerificationFailed(ExportError):
    """The artifact and the checkpoint disagree by more than the limits."""
