"""How measured figures are kept."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_figures(figures: Mapping[str, Any], path: Path) -> None:
    """Writes JSON that a person and a diff can read: a list of numbers stays on one line."""
    text = json.dumps(figures, indent=1)
    text = re.sub(r"\[\s[-+\d.eE,\s]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    path.write_text(text + "\n")
