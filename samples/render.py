"""Draw blood smears with exact truth: rendered images, no photographs, no patient data.

python samples/render.py --count 200 --seed 1 --out DIR     a YOLO-form data set
python samples/render.py --samples                          the committed samples
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # run as a file: only the file's own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from samples.layout import (
    REFERENCE_WIDTH,
    Floats,
    Truth,
    place_platelets,
    place_red,
    place_white,
    visible_truth,
)
from samples.paint import draw_debris, draw_platelet, draw_red, draw_white, texture

CLASS_NAMES = ("RBC", "WBC", "Platelets")
SAMPLES = {
    "smear_1.jpg": (6, (480, 640)),
    "smear_2.jpg": (17, (480, 640)),
    "smear_3.jpg": (21, (720, 1280)),
}
JPEG_QUALITY = 84


def _develop(rng: np.random.Generator, od: Floats, scale: float) -> NDArray[np.uint8]:
    """Turn optical density into the image of an ordinary camera: light, lens, sensor."""
    height, width = od.shape[:2]
    wide = rng.random() < 0.2
    lamp = np.array([205.5, 205, 202.5]) + rng.normal(0, 12 if wide else 2.5)
    lamp += rng.normal(0, 6 if wide else 1.5, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width) - 0.4
    tilt, turn = rng.uniform(0, 0.05), rng.uniform(0, 6.3)
    light = (
        1 + tilt * (x * np.cos(turn) + y * np.sin(turn)) - rng.uniform(0, 0.10) * (x * x + y * y)
    )
    light += 0.006 * texture(rng, (height, width), 60 * scale)
    image = np.exp(-od) * light[..., None] * lamp.astype(np.float32)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), scale * rng.uniform(0.9, 2.2))
    for channel in (0, 2):  # colour fringes of the lens
        shift = np.array([[1, 0, rng.normal(0, 0.6)], [0, 1, rng.normal(0, 0.6)]], np.float32)
        image[..., channel] = cv2.warpAffine(
            image[..., channel].copy(), shift, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
    noise = rng.standard_normal((height, width, 3), np.float32)
    noise = 0.6 * noise + rng.standard_normal((height, width, 1), np.float32)
    image += rng.uniform(1.6, 3.2) * cv2.GaussianBlur(noise, (0, 0), 0.55)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def render_smear(
    seed: int, size_hw: tuple[int, int] = (480, 640)
) -> tuple[NDArray[np.uint8], Truth]:
    """Draw one smear; the same seed and size give the same image.

    Args:
        seed: Any non-negative integer.
        size_hw: Height and width; cells keep their size relative to the longer side.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its truth: (class_id, box) a cell, box xyxy in
        pixels, tight around the cell and clipped to the image.
    """
    rng = np.random.default_rng(seed)
    scale = max(size_hw) / REFERENCE_WIDTH
    white = place_white(rng, size_hw, scale)
    red = place_red(rng, size_hw, scale, white)
    platelets = place_platelets(rng, size_hw, scale, white)
    od = np.zeros((*size_hw, 3), np.float32)
    stain = (rng.normal(1, 0.10) * rng.normal(1, 0.04, 3)).clip(0.7, 1.4).astype(np.float32)
    blur = rng.uniform(0.0, 0.05)
    for blob in red:
        draw_red(rng, od, blob, stain, blur)
    for blob in white:
        draw_white(rng, od, blob, stain, blur, scale)
    for blob in platelets:
        draw_platelet(rng, od, blob, stain, blur, scale)
    draw_debris(rng, od, scale)
    return _develop(rng, od, scale), visible_truth(red + white + platelets, size_hw)


def write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image with the artefacts of an ordinary JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    if not cv2.imwrite(str(path), image[..., ::-1], quality):
        raise OSError(f"cannot write {path}")


def write_dataset(out: Path, count: int, seed: int, held_out: int = 0) -> None:
    """Write `count` smears in YOLO form: images/, labels/ and data.yaml.

    The last `held_out` of them are for validation only; with 0 all are for both.
    """
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written = []
    for k in range(seed, seed + count):
        image, truth = render_smear(k)
        height, width = image.shape[:2]
        write_jpeg(out / "images" / f"smear_{k:06d}.jpg", image)
        written.append(f"./images/smear_{k:06d}.jpg\n")
        lines = [
            f"{class_id} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
            for class_id, (x1, y1, x2, y2) in truth
        ]
        (out / "labels" / f"smear_{k:06d}.txt").write_text("".join(lines))
    names = ", ".join(f"{class_id}: {name}" for class_id, name in enumerate(CLASS_NAMES))
    train, val = "images", "images"
    if held_out:
        train, val = "train.txt", "val.txt"
        (out / train).write_text("".join(written[:-held_out]))
        (out / val).write_text("".join(written[-held_out:]))
    (out / "data.yaml").write_text(f"train: {train}\nval: {val}\nnames: {{{names}}}\n")


def write_samples(out: Path) -> None:
    """Write the committed samples and their truth, smears.json."""
    truths = {}
    for name, (seed, size_hw) in SAMPLES.items():
        image, truth = render_smear(seed, size_hw)
        write_jpeg(out / name, image)
        cells = [
            {"class_id": c, "class_name": CLASS_NAMES[c], "box": list(box)} for c, box in truth
        ]
        truths[name] = {"width": size_hw[1], "height": size_hw[0], "seed": seed, "cells": cells}
    (out / "smears.json").write_text(json.dumps(truths, indent=1) + "\n")


def main() -> None:
    """Read the command line and write what it asks for."""
    parser = argparse.ArgumentParser(description="Draw blood smears with exact truth.")
    parser.add_argument("--count", type=int, default=200, help="images in the data set")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first image")
    parser.add_argument(
        "--held-out", type=int, default=0, help="images of them for validation only; default: all"
    )
    parser.add_argument("--out", type=Path, help="folder of the data set")
    parser.add_argument("--samples", action="store_true", help="write the committed samples")
    arguments = parser.parse_args()
    if arguments.samples:
        write_samples(Path(__file__).resolve().parent)
    elif arguments.out:
        if not 0 <= arguments.held_out < arguments.count:
            parser.error(f"--held-out {arguments.held_out} of {arguments.count}: leave some")
        write_dataset(arguments.out, arguments.count, arguments.seed, arguments.held_out)
    else:
        parser.error("give --out DIR or --samples")


if __name__ == "__main__":
    main()
