import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from export.verification.yolo_dataset import split_images
from samples.layout import ANGLES, PLATELET, RBC, WBC, Blob, Floats, outline, visible_truth
from samples.paint import draw_platelet, draw_red, draw_white
from samples.render import CLASS_NAMES, SAMPLES, render_smear, write_dataset

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [3, 6, 39]


def read_rgb(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path))
    assert image is not None, path
    return np.asarray(image[..., ::-1], np.uint8)


def disc(class_id: int, x: float, y: float, radius: float) -> Blob:
    return Blob(class_id, x, y, np.full(ANGLES.shape, radius))


def test_a_seed_gives_the_same_smear_again_and_another_seed_another() -> None:
    first, truth = render_smear(5)
    again, truth_again = render_smear(5)
    other, other_truth = render_smear(6)
    np.testing.assert_array_equal(first, again)
    assert truth == truth_again
    assert truth != other_truth
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size_hw", [(480, 640), (720, 1280), (640, 480)])
def test_boxes_lie_inside_the_image_and_have_an_area(size_hw: tuple[int, int]) -> None:
    image, truth = render_smear(6, size_hw)
    assert image.shape == (*size_hw, 3)
    assert image.dtype == np.uint8
    assert truth
    for class_id, (x1, y1, x2, y2) in truth:
        assert class_id in (RBC, WBC, PLATELET)
        assert 0 <= x1 < x2 <= size_hw[1]
        assert 0 <= y1 < y2 <= size_hw[0]


def absorbed(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Darkness of the green channel, which every stain absorbs, against the free background."""
    green = cv2.GaussianBlur(image[..., 1].astype(np.float32), (0, 0), 1.5)
    return np.asarray(np.percentile(green, 90) - green, np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_labelled_cell_is_darker_than_the_background(seed: int) -> None:
    image, truth = render_smear(seed)
    dark = absorbed(image)
    for class_id, (x1, y1, x2, y2) in truth:
        inside = dark[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1]
        assert np.percentile(inside, 70) > 6, (class_id, x1, y1, x2, y2)


Draw = Callable[[np.random.Generator, Floats, Blob, Floats], None]
DRAW: dict[int, Draw] = {
    RBC: lambda rng, od, blob, stain: draw_red(rng, od, blob, stain, 0.02),
    WBC: lambda rng, od, blob, stain: draw_white(rng, od, blob, stain, 0.02, 1.0),
    PLATELET: lambda rng, od, blob, stain: draw_platelet(rng, od, blob, stain, 0.02, 1.0),
}


@pytest.mark.parametrize(("class_id", "diameter"), [(RBC, 100), (WBC, 200), (PLATELET, 38)])
@pytest.mark.parametrize("seed", range(8))
def test_a_cell_s_pixels_end_where_its_box_ends(class_id: int, diameter: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    radii = outline(rng, diameter, rng.uniform(1, 1.3), 0.03)
    blob = Blob(class_id, rng.uniform(150, 170), rng.uniform(150, 170), radii)
    od = np.zeros((320, 320, 3), np.float32)
    DRAW[class_id](rng, od, blob, np.ones(3, np.float32))
    density = cv2.GaussianBlur(od[..., 1], (0, 0), 1.0)
    # A quarter of what the outer part absorbs: a platelet fades, a nucleus is far darker.
    where, rho, _ = blob.patch((320, 320))
    outer = float(np.median(density[where][(rho > 0.7) & (rho < 0.85)]))
    mask = density > 0.25 * outer
    chord = 0.12 * diameter  # rows and columns with less are specks of a ragged rim
    xs, ys = np.flatnonzero(mask.sum(0) >= chord), np.flatnonzero(mask.sum(1) >= chord)
    drawn = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
    # White cells are ragged and platelets fuzzy by design; a red cell has a plain edge.
    np.testing.assert_allclose(blob.box((320, 320)), drawn, atol=2.5 if class_id == RBC else 4)


def test_a_cell_is_labelled_while_enough_of_it_is_seen() -> None:
    size_hw = (480, 640)
    cut_little, cut_much = disc(RBC, 20, 240, 50), disc(RBC, -20, 240, 50)
    assert visible_truth([cut_little], size_hw) == [(RBC, (0.0, 188.0, 72.0, 292.0))]
    assert visible_truth([cut_much], size_hw) == []
    beside, below = disc(RBC, 430, 240, 50), disc(RBC, 340, 240, 50)
    white = disc(WBC, 320, 240, 100)
    labelled = visible_truth([beside, below, white], size_hw)
    assert [class_id for class_id, _ in labelled] == [RBC, WBC]
    pair = [disc(RBC, 300, 240, 50), disc(RBC, 310, 240, 50)]
    assert len(visible_truth(pair, size_hw)) == 2
    assert visible_truth([*pair, disc(RBC, 305, 245, 50)], size_hw) == []


def test_smears_resemble_the_data_set_in_counts_and_sizes() -> None:
    truths = [render_smear(seed)[1] for seed in range(100, 124)]
    cells = [cell for truth in truths for cell in truth]
    per_image = {c: sum(k == c for k, _ in cells) / len(truths) for c in (RBC, WBC, PLATELET)}
    assert 8 < per_image[RBC] < 16
    assert 0.6 < per_image[WBC] < 1.4
    assert 0.4 < per_image[PLATELET] < 2.5
    # Median width of BCCD's boxes: 106, 199 and 39 px.
    for class_id, low, high in ((RBC, 94, 116), (WBC, 130, 230), (PLATELET, 32, 48)):
        assert low < np.median([b[2] - b[0] for c, b in cells if c == class_id]) < high


def test_the_command_writes_a_data_set_in_yolo_form(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "samples" / "render.py")]
    options = ["--count", "2", "--seed", "7", "--out", str(tmp_path)]
    subprocess.run([*command, *options], check=True, cwd=tmp_path, timeout=120)
    images = sorted((tmp_path / "images").glob("*.jpg"))
    assert len(images) == 2
    assert {f"{k}: {name}" for k, name in enumerate(CLASS_NAMES)} <= set(
        (tmp_path / "data.yaml").read_text().split("{")[1].rstrip("}\n").split(", ")
    )
    for image, seed in zip(images, (7, 8), strict=True):
        drawn, truth = render_smear(seed)
        assert np.abs(read_rgb(image).astype(int) - drawn).mean() < 3
        lines = (tmp_path / "labels" / f"{image.stem}.txt").read_text().splitlines()
        for line, (class_id, box) in zip(lines, truth, strict=True):
            fields = line.split()
            x, y, width, height = (float(field) for field in fields[1:])
            assert int(fields[0]) == class_id
            corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            np.testing.assert_allclose(corners * [640, 480, 640, 480], box, atol=1e-2)


def test_images_can_be_held_out_for_validation(tmp_path: Path) -> None:
    write_dataset(tmp_path, count=3, seed=7, held_out=1)
    _, train = split_images(tmp_path / "data.yaml", "train")
    _, val = split_images(tmp_path / "data.yaml", "val")
    assert [path.name for path in train] == ["smear_000007.jpg", "smear_000008.jpg"]
    assert [path.name for path in val] == ["smear_000009.jpg"]
    assert all(path.is_file() for path in (*train, *val))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_committed_sample_is_what_the_renderer_draws(name: str) -> None:
    seed, size_hw = SAMPLES[name]
    drawn, truth = render_smear(seed, size_hw)
    stored = json.loads((ROOT / "samples" / "smears.json").read_text())[name]
    assert (stored["height"], stored["width"], stored["seed"]) == (*size_hw, seed)
    assert [(cell["class_id"], tuple(cell["box"])) for cell in stored["cells"]] == truth
    assert all(cell["class_name"] == CLASS_NAMES[cell["class_id"]] for cell in stored["cells"])
    assert {cell["class_id"] for cell in stored["cells"]} == {RBC, WBC, PLATELET}
    committed = read_rgb(ROOT / "samples" / name).astype(int)
    # JPEG and OpenCV's filters round differently from version to version.
    assert np.abs(committed - drawn).mean() < 3
