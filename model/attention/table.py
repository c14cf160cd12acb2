"""Every attention that is known here; a new one is a file beside this one and a line below."""

from collections.abc import Mapping

from model.attention import focused_linear
from model.attention.mechanism import Mechanism, Row

MECHANISMS: tuple[Mechanism, ...] = (focused_linear.MECHANISM,)

ROWS: Mapping[str, Row] = {
    name: row for mechanism in MECHANISMS for name, row in mechanism.rows.items()
}
