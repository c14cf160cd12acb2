"""Every attention that is exported; a new one is a file beside this one and a line below."""

from export.attention import focused_linear
from export.attention.mechanism import Mechanism

MECHANISMS: tuple[Mechanism, ...] = (focused_linear.MECHANISM,)

TAKE_OVER = {name: take for kind in MECHANISMS for name, take in kind.tutorial_layers.items()}
TUTORIAL_ROWS = {name: row for kind in MECHANISMS for name, row in kind.tutorial_rows.items()}
