"""Draw blood smears with exact truth: rendered pictures, no photographs, no patient data.

Light passes through the cells, so the picture is built as optical density (OD) per channel and
turned into colour once: overlapping red cells darken each other as they do under a microscope.
Figures below are in pixels of a 640 pixel wide picture and follow the BCCD data set's statistics.

    python samples/render.py --count 200 --seed 1 --out DIR     a YOLO-form data set
    python samples/render.py --samples                          the committed samples
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("RBC", "WBC", "Platelets")
RBC, WBC, PLATELET = range(3)
SAMPLES = {"smear_1.jpg": (21, (480, 640)), "smear_2.jpg": (22, (480, 640)),
           "smear_3.jpg": (23, (720, 1280))}  # fmt: skip
REFERENCE_WIDTH = 640
ANGLES = np.linspace(0, 2 * np.pi, 180, endpoint=False)
MIN_VISIBLE = {RBC: 0.55, WBC: 0.4, PLATELET: 0.45}
BOX_MARGIN = 2.0  # hand-drawn boxes stand this far off the half-intensity outline
JPEG_QUALITY = 84

Truth = list[tuple[int, tuple[float, float, float, float]]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Blob:
    """A closed outline around a centre, radius given per angle, in picture pixels."""

    class_id: int
    x: float
    y: float
    radii: NDArray[np.float64]  # (180,) at ANGLES

    @property
    def mean_radius(self) -> float:
        """Mean of the radius over all angles."""
        return float(self.radii.mean())

    def box(self, size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the tight box, xyxy, clipped to the picture, to a tenth of a pixel."""
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


def _clipped(value: float, low: float, high: float) -> float:
    return min(max(float(value), low), high)


def _outline(
    rng: np.random.Generator, diameter: float, aspect: float, rough: float
) -> NDArray[np.float64]:
    """Return radii of an ellipse with a random turn and smooth irregularities of size `rough`."""
    a, b = diameter / 2 * np.sqrt(aspect), diameter / 2 / np.sqrt(aspect)
    turned = ANGLES - rng.uniform(0, np.pi)
    radii = a * b / np.hypot(b * np.cos(turned), a * np.sin(turned))
    for order in range(2, 7):
        radii *= 1 + rng.normal(0, rough / order) * np.cos(order * ANGLES + rng.uniform(0, 6.3))
    return np.asarray(radii)


def _texture(rng: np.random.Generator, size_hw: tuple[int, int], grain: float) -> Floats:
    """Return smooth noise of unit variance whose features are about `grain` pixels wide."""
    step = max(1.0, grain / 2)
    coarse_hw = (int(size_hw[0] / step) + 4, int(size_hw[1] / step) + 4)
    coarse = cv2.GaussianBlur(rng.standard_normal(coarse_hw, np.float32), (0, 0), 1.0)
    noise = cv2.resize(coarse, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise / (noise.std() + 1e-6), np.float32)


def _inside(rho: Floats, softness: float) -> Floats:
    """Return 1 inside the outline, 0 outside, with an edge `softness` wide in relative radius."""
    ramp = np.clip((1 - rho) / softness + 0.5, 0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp), np.float32)


def _place_white(rng: np.random.Generator, size_hw: tuple[int, int], scale: float) -> list[Blob]:
    height, width = size_hw
    blobs: list[Blob] = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.06, 0.84, 0.10]))):
        small = rng.random() < 0.22
        diameter = scale * (rng.uniform(98, 140) if small else _clipped(rng.normal(202, 26), 145, 275))
        aspect, rough = rng.uniform(1, 1.25), 0.03 if small else 0.05
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        blob = Blob(WBC, x, y, _outline(rng, diameter, aspect, rough))
        gaps = [np.hypot(x - o.x, y - o.y) - o.mean_radius - diameter / 2 for o in blobs]
        if all(gap > -0.1 * diameter for gap in gaps):
            blobs.append(blob)
    return blobs


def _place_red(
    rng: np.random.Generator, size_hw: tuple[int, int], scale: float, white: list[Blob]
) -> list[Blob]:
    height, width = size_hw
    area = height * width / (scale * scale * 480 * 640)
    count = round(_clipped(rng.normal(16.5, 4.5), 4, 30) * area)
    typical = scale * float(rng.normal(100, 4))
    clumping = rng.uniform(0.1, 0.75)
    blobs: list[Blob] = []
    for _ in range(count * 12):
        if len(blobs) == count:
            break
        diameter = _clipped(rng.normal(typical, 0.10 * typical), 64 * scale, 138 * scale)
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
        aspect = 1 + _clipped(abs(rng.normal(0, 0.20)), 0, 0.8)
        rough = rng.choice([0.012, 0.03, 0.06], p=[0.35, 0.4, 0.25])
        blobs.append(Blob(RBC, float(x), float(y), _outline(rng, diameter, aspect, rough)))
    return blobs


def _place_platelets(
    rng: np.random.Generator, size_hw: tuple[int, int], scale: float, white: list[Blob]
) -> list[Blob]:
    height, width = size_hw
    blobs: list[Blob] = []
    count = int(rng.choice([0, 1, 2, 3, 4, 6], p=[0.3, 0.28, 0.22, 0.1, 0.06, 0.04]))
    for _ in range(count):
        x, y = rng.uniform(5, width - 5), rng.uniform(5, height - 5)
        if blobs and rng.random() < 0.35:  # a clump: specks side by side
            turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(34, 52) * scale
            x, y = blobs[-1].x + reach * np.cos(turn), blobs[-1].y + reach * np.sin(turn)
        diameter = scale * _clipped(rng.normal(36, 7), 22, 62)
        clear_of_white = all(
            np.hypot(x - w.x, y - w.y) > w.mean_radius + 0.6 * diameter for w in white
        )
        alone = all(np.hypot(x - o.x, y - o.y) > 0.75 * diameter for o in blobs)
        if clear_of_white and alone and 0 < x < width and 0 < y < height:
            radii = _outline(rng, diameter, rng.uniform(1, 1.35), 0.12)
            blobs.append(Blob(PLATELET, float(x), float(y), radii))
    return blobs


def _draw_red(rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float) -> None:
    where, rho, angle = blob.patch((od.shape[0], od.shape[1]))
    if rho.size == 0:
        return
    inside = _inside(rho, rng.uniform(0.1, 0.22) + blur)
    flat = rng.random() < 0.36
    pallor = rng.uniform(0, 0.22) if flat else rng.uniform(0.3, 0.95)
    width = rng.uniform(0.3, 0.72)
    lean = 1 + 0.22 * rng.random() * np.cos(angle - rng.uniform(0, 6.3))  # off-centre pallor
    centre = pallor * np.exp(-((rho * lean / width) ** rng.uniform(2, 7)))
    rim = rng.uniform(0.0, 0.4) * np.exp(-(((rho - 0.9) / 0.07) ** 2))
    strength = _clipped(rng.normal(0.275 if flat else 0.20, 0.055), 0.11, 0.46)
    bumps = 1 + 0.05 * _texture(rng, (rho.shape[0], rho.shape[1]), 25)
    thick = strength * inside * bumps * (1 - centre)
    rim_hue = np.array([0.46, 1.0, rng.normal(0.74, 0.06)], np.float32)
    core_hue = np.array([0.42, 1.0, rng.normal(1.04, 0.1)], np.float32)
    edge = np.clip((rho - 0.45) / 0.5, 0, 1)[..., None]
    colour = core_hue * (1 - edge) + rim_hue * edge
    drawn = (thick[..., None] * colour + (strength * rim * inside)[..., None] * rim_hue) * stain
    halo = 0.035 * rng.random() * np.exp(-(((rho - 1.08) / 0.05) ** 2))
    # Two cells absorb a little less than their sum: the pile is squeezed flat.
    od[where] += drawn * (1 - 0.42 * np.clip(od[where][..., 1:2] / 0.3, 0, 1)) - halo[..., None]


def _nucleus(
    rng: np.random.Generator, blob: Blob, rho: Floats, dx: Floats, dy: Floats, scale: float
) -> Floats:
    """Return a soft mask: round for a lymphocyte, kidney or lobes otherwise."""
    radius = blob.mean_radius
    noise = _texture(rng, (rho.shape[0], rho.shape[1]), radius / 3)
    if radius < 71 * scale and rng.random() < 0.7:
        return _inside(rho / np.float32(rng.uniform(0.8, 0.98)) + 0.025 * noise, 0.08)
    lobes, turn = int(rng.integers(2, 7)), rng.uniform(0, 2 * np.pi)
    sweep = rng.uniform(2.4, 5.4) * rng.choice([-1, 1])
    size = rng.uniform(0.23, 0.33) * (1.4 if lobes < 3 else 1.0)
    points = [
        (
            radius * rng.uniform(0.38, 0.56) * np.cos(turn + sweep * k / lobes),
            radius * rng.uniform(0.38, 0.56) * np.sin(turn + sweep * k / lobes),
        )
        for k in range(lobes)
    ]
    field = np.zeros_like(rho)
    for k, (px, py) in enumerate(points):
        r = radius * size * rng.uniform(0.8, 1.15)
        stretch, tilt = rng.uniform(1, 1.35), rng.uniform(0, np.pi)
        u = (dx - px) * np.cos(tilt) + (dy - py) * np.sin(tilt)
        v = (dy - py) * np.cos(tilt) - (dx - px) * np.sin(tilt)
        field += np.exp(-0.69 * ((u / stretch) ** 2 + (v * stretch) ** 2) ** 2 / r**4)
        if k and rng.random() < 0.75:  # a bridge to the lobe before
            qx, qy = (px + points[k - 1][0]) / 2, (py + points[k - 1][1]) / 2
            field += 0.9 * np.exp(-0.69 * ((dx - qx) ** 2 + (dy - qy) ** 2) / (0.55 * r) ** 2)
    field = field + 0.08 * noise - np.clip((rho - 0.9) * 8, 0, 1)
    return np.asarray(np.clip((field - 0.5) / 0.22 + 0.5, 0, 1), np.float32)


def _draw_white(
    rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float, scale: float
) -> None:
    where, rho, angle = blob.patch((od.shape[0], od.shape[1]))
    patch_hw = (rho.shape[0], rho.shape[1])
    ragged = rho + rng.uniform(0, 0.035) * _texture(rng, patch_hw, 9 * scale)
    inside = _inside(np.asarray(ragged, np.float32), 0.07 + blur)[..., None]
    reach = rho * np.interp(angle, ANGLES, blob.radii, period=2 * np.pi)
    dx, dy = (reach * np.cos(angle)).astype(np.float32), (reach * np.sin(angle)).astype(np.float32)
    nucleus = _nucleus(rng, blob, rho, dx, dy, scale)[..., None]
    grains = _texture(rng, patch_hw, 4.5 * scale) + 0.7 * _texture(rng, patch_hw, 14 * scale)
    cytoplasm_hue = np.array([rng.uniform(0.07, 0.17), 0.31, rng.uniform(0.0, 0.07)], np.float32)
    grainy = rng.uniform(0.05, 0.22)
    cytoplasm = cytoplasm_hue * rng.uniform(0.5, 1.15) * (1 + grainy * grains[..., None])
    clots = _texture(rng, patch_hw, 26 * scale) + 0.4 * _texture(rng, patch_hw, 9 * scale)
    chromatin = 1 + rng.uniform(0.06, 0.26) * clots[..., None]
    nucleus_hue = np.array([rng.normal(0.44, 0.07), rng.normal(0.75, 0.09), rng.normal(-0.03, 0.02)], np.float32)
    cell = cytoplasm * (1 - nucleus) + nucleus_hue * chromatin * nucleus
    od[where] = od[where] * (1 - 0.92 * inside) + cell * stain * inside


def _draw_platelet(
    rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float, scale: float
) -> None:
    where, rho, _ = blob.patch((od.shape[0], od.shape[1]))
    patch_hw = (rho.shape[0], rho.shape[1])
    fuzzy = rho + 0.08 * _texture(rng, patch_hw, 7 * scale)
    inside = _inside(np.asarray(fuzzy, np.float32), 0.35 + 2 * blur)
    grains = 1 + rng.uniform(0.1, 0.35) * _texture(rng, patch_hw, 6 * scale)
    core = 0.55 + 0.75 * np.exp(-((rho / 0.62) ** 2))
    hue = np.array([rng.uniform(0.17, 0.34), 0.33, rng.uniform(-0.06, 0.02)], np.float32)
    strength = _clipped(rng.normal(0.92, 0.3), 0.4, 1.7)
    drawn = (strength * inside * grains * core)[..., None] * hue * stain
    od[where] = od[where] * (1 - 0.4 * inside[..., None]) + drawn


def _draw_debris(rng: np.random.Generator, od: Floats, scale: float) -> None:
    """Add what is no cell: smudges, dust dots and refractile rings like those on dried cells."""
    height, width = od.shape[:2]
    for _ in range(int(rng.poisson(1.0))):  # grey smudge, out of focus
        radii = _outline(rng, scale * rng.uniform(10, 30), rng.uniform(1, 2.2), 0.1)
        blob = Blob(-1, rng.uniform(0, width), rng.uniform(0, height), radii)
        where, rho, _ = blob.patch((height, width))
        grey = np.array([1.0, 0.85, 0.8], np.float32) * rng.uniform(0.03, 0.22)
        od[where] += _inside(rho, 1.1)[..., None] * grey
    for _ in range(int(rng.poisson(4))):  # dust dot
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        tone = rng.uniform(0.03, 0.16)
        layer = np.zeros((height, width), np.float32)
        radius = max(1, round(scale * rng.uniform(1, 4)))
        cv2.circle(layer, centre, radius, tone, -1 if radius < 3 else 1, cv2.LINE_AA)
        od += layer[..., None]
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 9))):  # refractile ring: dark rim, bright middle
            radii = _outline(rng, scale * rng.uniform(7, 22), rng.uniform(1, 2), 0.12)
            blob = Blob(-1, rng.uniform(0, width), rng.uniform(0, height), radii)
            where, rho, _ = blob.patch((height, width))
            on_cell = np.clip(od[where][..., 1:2] / 0.15, 0, 1)
            rim = np.exp(-(((rho - 0.85) / 0.25) ** 2))[..., None]
            dark = np.array([0.20, 0.32, rng.uniform(0.0, 0.25)], np.float32)
            shine = (0.22 * np.exp(-((rho / 0.45) ** 2)))[..., None]
            od[where] += on_cell * rng.uniform(0.4, 1) * (rim * dark - shine)


def _truth(blobs: list[Blob], size_hw: tuple[int, int]) -> Truth:
    """Label what is visible to at least `MIN_VISIBLE`: inside the picture, not under white or piles."""
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


def _develop(rng: np.random.Generator, od: Floats, scale: float) -> NDArray[np.uint8]:
    """Turn optical density into the picture of an ordinary camera: light, lens, sensor."""
    height, width = od.shape[:2]
    wide = rng.random() < 0.2
    lamp = np.array([205.5, 205, 202.5]) + rng.normal(0, 12 if wide else 2.5)
    lamp += rng.normal(0, 6 if wide else 1.5, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width) - 0.4
    tilt, turn = rng.uniform(0, 0.05), rng.uniform(0, 6.3)
    light = 1 + tilt * (x * np.cos(turn) + y * np.sin(turn)) - rng.uniform(0, 0.10) * (x * x + y * y)
    light += 0.006 * _texture(rng, (height, width), 60 * scale)
    picture = np.exp(-od) * light[..., None] * lamp.astype(np.float32)
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), scale * rng.uniform(0.9, 2.2))
    for channel in (0, 2):  # colour fringes of the lens
        shift = np.array([[1, 0, rng.normal(0, 0.6)], [0, 1, rng.normal(0, 0.6)]], np.float32)
        picture[..., channel] = cv2.warpAffine(
            picture[..., channel].copy(), shift, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
    noise = rng.standard_normal((height, width, 3), np.float32)
    noise = 0.6 * noise + rng.standard_normal((height, width, 1), np.float32)
    picture += rng.uniform(1.6, 3.2) * cv2.GaussianBlur(noise, (0, 0), 0.55)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def render_smear(
    seed: int, size_hw: tuple[int, int] = (480, 640)
) -> tuple[NDArray[np.uint8], Truth]:
    """Draw one smear; the same seed and size give the same picture.

    Args:
        seed: Any non-negative integer.
        size_hw: Height and width; cells keep their size relative to the longer side.

    Returns:
        The picture, (H, W, 3) uint8 RGB, and its truth: (class_id, box) a cell, box xyxy in
        pixels, tight around the cell and clipped to the picture.
    """
    rng = np.random.default_rng(seed)
    scale = max(size_hw) / REFERENCE_WIDTH
    white = _place_white(rng, size_hw, scale)
    red = _place_red(rng, size_hw, scale, white)
    platelets = _place_platelets(rng, size_hw, scale, white)
    od = np.zeros((*size_hw, 3), np.float32)
    stain = (rng.normal(1, 0.10) * rng.normal(1, 0.04, 3)).clip(0.7, 1.4).astype(np.float32)
    blur = rng.uniform(0.0, 0.05)
    for blob in red:
        _draw_red(rng, od, blob, stain, blur)
    for blob in white:
        _draw_white(rng, od, blob, stain, blur, scale)
    for blob in platelets:
        _draw_platelet(rng, od, blob, stain, blur, scale)
    _draw_debris(rng, od, scale)
    return _develop(rng, od, scale), _truth(red + white + platelets, size_hw)


def write_jpeg(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture with the artefacts of an ordinary JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    if not cv2.imwrite(str(path), picture[..., ::-1], quality):
        raise OSError(f"cannot write {path}")


def write_dataset(out: Path, count: int, seed: int) -> None:
    """Write `count` smears in YOLO form: images/, labels/ and data.yaml."""
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for k in range(seed, seed + count):
        picture, truth = render_smear(k)
        height, width = picture.shape[:2]
        write_jpeg(out / "images" / f"smear_{k:06d}.jpg", picture)
        lines = [
            f"{class_id} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
            for class_id, (x1, y1, x2, y2) in truth
        ]
        (out / "labels" / f"smear_{k:06d}.txt").write_text("".join(lines))
    names = ", ".join(f"{class_id}: {name}" for class_id, name in enumerate(CLASS_NAMES))
    (out / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames: {{{names}}}\n")


def write_samples(out: Path) -> None:
    """Write the committed samples and their truth, smears.json."""
    truths = {}
    for name, (seed, size_hw) in SAMPLES.items():
        picture, truth = render_smear(seed, size_hw)
        write_jpeg(out / name, picture)
        cells = [{"class_id": c, "class_name": CLASS_NAMES[c], "box": list(box)} for c, box in truth]
        truths[name] = {"width": size_hw[1], "height": size_hw[0], "seed": seed, "cells": cells}
    (out / "smears.json").write_text(json.dumps(truths, indent=1) + "\n")


def main() -> None:
    """Read the command line and write what it asks for."""
    parser = argparse.ArgumentParser(description="Draw blood smears with exact truth.")
    parser.add_argument("--count", type=int, default=200, help="pictures in the data set")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first picture")
    parser.add_argument("--out", type=Path, help="folder of the data set")
    parser.add_argument("--samples", action="store_true", help="write the committed samples")
    arguments = parser.parse_args()
    if arguments.samples:
        write_samples(Path(__file__).resolve().parent)
    elif arguments.out:
        write_dataset(arguments.out, arguments.count, arguments.seed)
    else:
        parser.error("give --out DIR or --samples")


if __name__ == "__main__":
    main()
