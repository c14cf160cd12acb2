"""How the cells of a smear look: optical density (OD) per channel, added up cell by cell.

Light passes through the cells, so densities add and overlapping red cells darken each other as
they do under a microscope. Colours are OD ratios measured on BCCD's training images.
"""

import cv2
import numpy as np

from samples.layout import ANGLES, Blob, Floats, clipped, outline


def texture(rng: np.random.Generator, size_hw: tuple[int, int], grain: float) -> Floats:
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


def draw_red(rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float) -> None:
    """Add a disc, flat or with central pallor, with a darker rim and a faint bright halo."""
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
    strength = clipped(rng.normal(0.275 if flat else 0.20, 0.055), 0.11, 0.46)
    bumps = 1 + 0.05 * texture(rng, (rho.shape[0], rho.shape[1]), 25)
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
    noise = texture(rng, (rho.shape[0], rho.shape[1]), radius / 3)
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


def draw_white(
    rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float, scale: float
) -> None:
    """Draw a granular cytoplasm with its nucleus over whatever lies below."""
    where, rho, angle = blob.patch((od.shape[0], od.shape[1]))
    patch_hw = (rho.shape[0], rho.shape[1])
    ragged = rho + rng.uniform(0, 0.035) * texture(rng, patch_hw, 9 * scale)
    inside = _inside(np.asarray(ragged, np.float32), 0.07 + blur)[..., None]
    reach = rho * np.interp(angle, ANGLES, blob.radii, period=2 * np.pi)
    dx, dy = (reach * np.cos(angle)).astype(np.float32), (reach * np.sin(angle)).astype(np.float32)
    nucleus = _nucleus(rng, blob, rho, dx, dy, scale)[..., None]
    grains = texture(rng, patch_hw, 4.5 * scale) + 0.7 * texture(rng, patch_hw, 14 * scale)
    cytoplasm_hue = np.array([rng.uniform(0.07, 0.17), 0.31, rng.uniform(0.0, 0.07)], np.float32)
    grainy = rng.uniform(0.05, 0.22)
    cytoplasm = cytoplasm_hue * rng.uniform(0.5, 1.15) * (1 + grainy * grains[..., None])
    clots = texture(rng, patch_hw, 26 * scale) + 0.4 * texture(rng, patch_hw, 9 * scale)
    chromatin = 1 + rng.uniform(0.06, 0.26) * clots[..., None]
    nucleus_hue = np.array(
        [rng.normal(0.44, 0.07), rng.normal(0.75, 0.09), rng.normal(-0.03, 0.02)], np.float32
    )
    cell = cytoplasm * (1 - nucleus) + nucleus_hue * chromatin * nucleus
    od[where] = od[where] * (1 - 0.92 * inside) + cell * stain * inside


def draw_platelet(
    rng: np.random.Generator, od: Floats, blob: Blob, stain: Floats, blur: float, scale: float
) -> None:
    """Add a fuzzy violet speck with granules."""
    where, rho, _ = blob.patch((od.shape[0], od.shape[1]))
    patch_hw = (rho.shape[0], rho.shape[1])
    fuzzy = rho + 0.08 * texture(rng, patch_hw, 7 * scale)
    inside = _inside(np.asarray(fuzzy, np.float32), 0.35 + 2 * blur)
    grains = 1 + rng.uniform(0.1, 0.35) * texture(rng, patch_hw, 6 * scale)
    core = 0.55 + 0.75 * np.exp(-((rho / 0.62) ** 2))
    hue = np.array([rng.uniform(0.17, 0.34), 0.33, rng.uniform(-0.06, 0.02)], np.float32)
    strength = clipped(rng.normal(0.92, 0.3), 0.4, 1.7)
    drawn = (strength * inside * grains * core)[..., None] * hue * stain
    od[where] = od[where] * (1 - 0.4 * inside[..., None]) + drawn


def draw_debris(rng: np.random.Generator, od: Floats, scale: float) -> None:
    """Add what is no cell: smudges, dust dots and refractile rings like those on dried cells."""
    height, width = od.shape[:2]
    for _ in range(int(rng.poisson(1.0))):  # grey smudge, out of focus
        radii = outline(rng, scale * rng.uniform(10, 30), rng.uniform(1, 2.2), 0.1)
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
            radii = outline(rng, scale * rng.uniform(7, 22), rng.uniform(1, 2), 0.12)
            blob = Blob(-1, rng.uniform(0, width), rng.uniform(0, height), radii)
            where, rho, _ = blob.patch((height, width))
            on_cell = np.clip(od[where][..., 1:2] / 0.15, 0, 1)
            rim = np.exp(-(((rho - 0.85) / 0.25) ** 2))[..., None]
            dark = np.array([0.20, 0.32, rng.uniform(0.0, 0.25)], np.float32)
            shine = (0.22 * np.exp(-((rho / 0.45) ** 2)))[..., None]
            od[where] += on_cell * rng.uniform(0.4, 1) * (rim * dark - shine)
