"""Where the cells of a smear lie, how they are outlined, and which of them are labelled.

Figures are in pixels of a 640 pixel wide image and follow the BCCD data set's label statistics.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RBC, WBC, PLATELET = range(3)
REFERENCE_WIDTH = 640
ANGLES = np.linspace(0, 2 * np.pi, 180, endpoint=False)
# BCCD leaves most red cells unlabelled of which less than about half is seen.
MIN_VISIBLE = {RBC: 0.55, WBC: 0.4, PLATELET: 0.45}
BOX_MARGIN = 2.0  # hand-drawn boxes stand this far off the half-intensity outline

Truth = list[tuple[int, tuple[float, float, float, float]]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Blob:
    """A closed outline around a centre, radius given per angle, in image pixels."""

    class_id: int
    x: float
    y: float
    radii: NDArray[np.float64]  # (180,) at ANGLES

    @property
    def mean_radius(self) -> float:
        """Mean of the radius over all angles."""
        return float(self.radii.mean())

    def box(self, size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the tight box, xyxy, clipped to the image, to a tenth of a pixel."""
        reach = self.radii + BOX_MARGIN * max(size_hw) / REFERENCE_WIDTH
        xs, ys = self.x + reach * np.cos(ANGLES), self.y + reach * np.sin(ANGLES)
        x1, x2 = np.clip([xs.min(), xs.max()], 0, size_hw[1])
        y1, y2 = np.clip([ys.min(), ys.max()], 0, size_hw[0])
        return (round(float(x1), 1), round(float(y1), 1), round(float(x2), 1), round(float(y2), 1))

    def patch(self, size_hw: tuple[int, int]) -> tuple[tuple[slice, slice], Floats, Floats]:
        """Return where the blob lies and, per pixel there, relative radius (1 = outline), angle."""
        reach = float(self.radii.max()) * 1.15 + 3
        y1, y2 = np.clip([self.y - reach, self.y + reach + 1], 0, size_hw[0]).astype(int)
        x1, x2 = np.clip([self.x - reach, self.x + reach + 1], 0, size_hw[1]).astype(int)
        ys, xs = slice(y1, y2), slice(x1, x2)
        dy, dx = np.mgrid[ys, xs].astype(np.float32) + 0.5
        dy, dx = dy - np.float32(self.y), dx - np.float32(self.x)
        angle = np.arctan2(dy, dx) % np.float32(2 * np.pi)
        outline = np.interp(angle, np.r_[ANGLES, 2 * np.pi], np.r_[self.radii, self.radii[0]])
        return (ys, xs), (np.hypot(dx, dy) / outline).astype(np.float32), angle.astype(np.float32)


def clipped(value: float, low: float, high: float) -> float:
    """Return the value held between low and high."""
    return min(max(float(value), low), high)


def outline(
    rng: np.random.Generator, diameter: float, aspect: float, rough: float
) -> NDArray[np.float64]:
    """Return radii of an ellipse with a random turn and smooth irregularities of size `rough`."""
    a, b = diameter / 2 * np.sqrt(aspect), diameter / 2 / np.sqrt(aspect)
    turned = ANGLES - rng.uniform(0, np.pi)
    radii = a * b / np.hypot(b * np.cos(turned), a * np.sin(turned))
    for order in range(2, 7):
        radii *= 1 + rng.normal(0, rough / order) * np.cos(order * ANGLES + rng.uniform(0, 6.3))
    return np.asarray(radii)


def place_white(rng: np.random.Generator, size_hw: tuple[int, int], scale: float) -> list[Blob]:
    """Return mostly one white cell, small (lymphocyte) or large, anywhere in the image."""
    height, width = size_hw
    blobs: list[Blob] = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.06, 0.84, 0.10]))):
        small = rng.random() < 0.22
        diameter = scale * (
            rng.uniform(98, 140) if small else clipped(rng.normal(202, 26), 145, 275)
        )
        aspect, rough = rng.uniform(1, 1.25), 0.03 if small else 0.05
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        blob = Blob(WBC, x, y, outline(rng, diameter, aspect, rough))
        gaps = [np.hypot(x - o.x, y - o.y) - o.mean_radius - diameter / 2 for o in blobs]
        if all(gap > -0.1 * diameter for gap in gaps):
            blobs.append(blob)
    return blobs


def place_red(
    rng: np.random.Generator, size_hw: tuple[int, int], scale: float, white: list[Blob]
) -> list[Blob]:
    """Return red cells, single and in chains, some cut by the border, none inside a white cell."""
    height, width = size_hw
    area = height * width / (scale * scale * 480 * 640)
    count = round(clipped(rng.normal(16.5, 4.5), 4, 30) * area)
    typical = scale * float(rng.normal(100, 4))
    clumping = rng.uniform(0.1, 0.75)
    blobs: list[Blob] = []
    for _ in range(count * 12):
        if len(blobs) == count:
            break
        diameter = clipped(rng.normal(typical, 0.10 * typical), 64 * scale, 138 * scale)
        if blobs and rng.random() < clumping:
            near, turn = blobs[int(rng.integers(len(blobs)))], rng.uniform(0, 2 * np.pi)
            distance = rng.uniform(0.5, 0.95) * diameter
            x, y = near.x + distance * np.cos(turn), near.y + distance * np.sin(turn)
        else:
            x = rng.uniform(-0.35 * diameter, width + 0.35 * diameter)
            y = rng.uniform(-0.35 * diameter, height + 0.35 * diameter)
        in_white = any(np.hypot(x - w.x, y - w.y) < w.mean_radius + 0.32 * diameter for w in white)
        crowd = [np.hypot(x - o.x, y - o.y) / diameter for o in blobs]
        # A few cells on top of each other are common, piles of many are not labelled in BCCD.
        piled = min(crowd, default=9) < 0.45 or sum(d < 0.75 for d in crowd) > 1
        off = not (-60 * scale < x < width + 60 * scale and -60 * scale < y < height + 60 * scale)
        if in_white or piled or off:
            continue
        aspect = 1 + clipped(abs(rng.normal(0, 0.20)), 0, 0.8)
        rough = rng.choice([0.012, 0.03, 0.06], p=[0.35, 0.4, 0.25])
        blobs.append(Blob(RBC, float(x), float(y), outline(rng, diameter, aspect, rough)))
    return blobs


def place_platelets(
    rng: np.random.Generator, size_hw: tuple[int, int], scale: float, white: list[Blob]
) -> list[Blob]:
    """Return single and clumped platelets clear of the white cells."""
    height, width = size_hw
    blobs: list[Blob] = []
    count = int(rng.choice([0, 1, 2, 3, 4, 6], p=[0.3, 0.28, 0.22, 0.1, 0.06, 0.04]))
    for _ in range(count):
        x, y = rng.uniform(5, width - 5), rng.uniform(5, height - 5)
        if blobs and rng.random() < 0.35:  # a clump: specks side by side
            turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(34, 52) * scale
            x, y = blobs[-1].x + reach * np.cos(turn), blobs[-1].y + reach * np.sin(turn)
        diameter = scale * clipped(rng.normal(36, 7), 22, 62)
        clear_of_white = all(
            np.hypot(x - w.x, y - w.y) > w.mean_radius + 0.6 * diameter for w in white
        )
        alone = all(np.hypot(x - o.x, y - o.y) > 0.75 * diameter for o in blobs)
        if clear_of_white and alone and 0 < x < width and 0 < y < height:
            radii = outline(rng, diameter, rng.uniform(1, 1.35), 0.12)
            blobs.append(Blob(PLATELET, float(x), float(y), radii))
    return blobs


def visible_truth(blobs: list[Blob], size_hw: tuple[int, int]) -> Truth:
    """Label what `MIN_VISIBLE` asks for: inside the image, not under white cells or piles."""
    cover = np.zeros(size_hw, np.float32)  # red cells are translucent: two deep still reads
    drawn = []
    for blob in blobs:
        where, rho, _ = blob.patch(size_hw)
        mask = rho <= 1
        drawn.append((where, mask))
        if blob.class_id != PLATELET:
            cover[where] += mask * (3 if blob.class_id == WBC else 1)
    truth: Truth = []
    for blob, (where, mask) in zip(blobs, drawn, strict=True):
        area = 0.5 * float((blob.radii**2).mean()) * 2 * np.pi
        seen = mask & (cover[where] <= 2) if blob.class_id == RBC else mask
        if seen.sum() / area >= MIN_VISIBLE[blob.class_id]:
            truth.append((blob.class_id, blob.box(size_hw)))
    return truth
