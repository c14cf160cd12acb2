"""What may be chosen for a detection, as the server's query has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

Classes: TypeAlias = Sequence[int | str]


class Chosen(TypedDict, total=False):
    """What may be chosen for a detection; `Parameters` says what each means."""

    conf: float | None
    iou: float | None
    max_det: int | None
    classes: Classes | None
    agnostic_nms: bool | None


class Flow(Chosen, total=False):
    """What may be chosen for a stream; `Client.stream` says what each means."""

    in_flight: int
    images_per_request: int
    ordered: bool


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was chosen; None leaves the choice to the server, which also checks the ranges.

    Attributes:
        conf: confidence threshold, 0..1; the server's default is 0.25.
        iou: IoU threshold of the non-maximum suppression, 0..1; 0.7.
        max_det: detections per image at most, >= 1; 300.
        classes: only these, by id or name; all.
        agnostic_nms: suppress overlaps across classes, too; False.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Classes | None = None
    agnostic_nms: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, str | int):
            raise TypeError(f"classes takes several ids or names, such as [{self.classes!r}]")
        if self.classes is not None and not self.classes:
            raise ValueError("classes is empty; leave it out for all")

    def query(self) -> list[tuple[str, str]]:
        """Names and values; a class stands for itself, as a name may hold a comma."""
        plain = {"conf": self.conf, "iou": self.iou, "max_det": self.max_det}
        found = [(name, str(value)) for name, value in plain.items() if value is not None]
        if self.agnostic_nms is not None:
            found.append(("agnostic_nms", "true" if self.agnostic_nms else "false"))
        return found + [("classes", str(each)) for each in self.classes or ()]

    def arguments(self) -> Chosen:
        """What `Parameters`, and a client's methods, are called with."""
        return Chosen(
            conf=self.conf,
            iou=self.iou,
            max_det=self.max_det,
            classes=self.classes,
            agnostic_nms=self.agnostic_nms,
        )

    def chosen(self) -> dict[str, object]:
        """What was chosen, for a record of it in JSON."""
        names = ("conf", "iou", "max_det", "agnostic_nms")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return found | ({"classes": list(self.classes)} if self.classes is not None else {})
