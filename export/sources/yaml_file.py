"""Reads what a user wrote in YAML."""

from pathlib import Path
from typing import Any

import yaml

from export.errors import ModelUnsupported


def read_yaml(path: Path) -> Any:
    """Plain values, lists and dicts; a few lines may refer to each other and stand for very many.

    Raises:
        ModelUnsupported: it cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnsupported(f"{path}: {error.strerror}") from None
    except Exception as error:  # beside YAML's own: of numbers and dates that are none, of depth
        said = " ".join(str(error).split())[:200]
        raise ModelUnsupported(f"{path}: not a YAML file: {said}") from None


def truncate_repr(value: Any) -> str:
    """A value for a message, or else its type: written out, a list may be longer than memory."""
    return str(value)[:60] if isinstance(value, str | int | float) else type(value).__name__
