import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.attention.ablation import ARCHITECTURES, RECIPE, main, runs_of, seed_list
from benchmarks.attention.ablation_measure import check_recipe, curve_of, size_of, stages_of
from benchmarks.attention.ablation_page import page, plot

PLAIN, FLA, C2F = ARCHITECTURES


def figures(accuracies: dict[str, list[float]], missing: list[str] | None = None) -> dict[str, Any]:
    """Made ones: mAP50-95 by architecture, a value a seed."""
    return {
        "machine": {"processor": "made", "onnxruntime": "1"},
        **{"threads": 1, "rounds": 5, "imgsz": 320, "epochs": 50},
        "images": {"train": 205, "val": 87},
        "seeds": list(range(max(len(own) for own in accuracies.values()))),
        "missing": missing or [],
        "runs": [
            {
                **{"arch": arch, "seed": seed, "map50_95": value, "map50": value + 0.3},
                "curve": {"map50_95": [0.1, value], "map50": [0.2, value + 0.3]},
            }
            for arch, own in accuracies.items()
            for seed, value in enumerate(own)
        ],
        "architectures": {
            arch: {"parameters": 1000 * n, "gflops": 2.0 * n, "ms": 10.0 * n, "ratio": 1.0 * n}
            for n, arch in enumerate(accuracies, 1)
        },
    }


def text_of(*arguments: Any) -> str:
    return " ".join(page(figures(*arguments), ARCHITECTURES).split())


def test_every_figure_stands_in_its_row() -> None:
    text = page(figures({PLAIN: [0.60, 0.58], FLA: [0.59, 0.63]}), ARCHITECTURES)
    assert "| yolov8n | 60.0 | 58.0 | **59.0** | 2.0 | 89.0 |" in text
    assert "| yolov8n-fla | 59.0 | 63.0 | **61.0** | 4.0 | 91.0 |" in text
    assert "| yolov8n-c2f-fla | – | – | – | – | – |" in text
    assert "| yolov8n-fla | 2,000 | 4.00 | 20.00 | 2.00 |" in text
    assert "yolov8n-fla has 100 % more parameters" in " ".join(text.split())


def test_a_difference_within_the_spread_of_seeds_is_no_result() -> None:
    text = text_of({PLAIN: [0.60, 0.58], FLA: [0.59, 0.63]})
    assert "2.0 points above yolov8n with seeds 0 and 1" in text
    assert "don't tell them apart" in text
    assert "hint" not in text


def test_a_difference_beyond_the_spread_is_a_hint_whoever_wins() -> None:
    text = text_of({PLAIN: [0.60, 0.61], FLA: [0.55, 0.56], C2F: [0.64, 0.65]})
    assert "The best mean with seeds 0 and 1 is that of yolov8n-c2f-fla." in text
    assert "yolov8n-fla is 5.0 points below yolov8n" in text
    assert "yolov8n-c2f-fla is 4.0 points above yolov8n" in text
    assert text.count("of the same sign with every seed: a hint") == 2


def test_one_seed_says_that_it_is_one_and_what_is_missing_is_named() -> None:
    text = text_of({PLAIN: [0.60], FLA: [0.70]}, ["yolov8n-c2f-fla-seed0"])
    assert "one seed, so even the sign may be chance" in text
    assert "**Not there yet:** yolov8n-c2f-fla-seed0." in text


def test_only_seeds_that_both_have_are_compared() -> None:
    text = text_of({PLAIN: [0.60, 0.20], FLA: [0.61]})
    assert "yolov8n-fla is 1.0 points above yolov8n with seed 0" in text


def test_without_the_baseline_nothing_is_compared() -> None:
    text = text_of({FLA: [0.6], C2F: [0.5]})
    assert "There is nothing to compare yet." in text
    assert "yolov8n is missing" in text


def test_the_plot_takes_partial_runs(tmp_path: Path) -> None:
    for made in (figures({PLAIN: [0.6, 0.61], FLA: [0.5]}), figures({C2F: [0.6]})):
        plot(made, ARCHITECTURES, tmp_path / "plot.png")
        assert 5_000 < (tmp_path / "plot.png").stat().st_size < 200_000


def test_runs_are_named_by_architecture_and_seed_and_one_of_each_comes_first() -> None:
    runs = runs_of(Path("runs"), seed_list("0,1,0"))
    assert [folder.name for folder in runs.values()][:4] == [
        *("yolov8n-seed0", "yolov8n-fla-seed0", "yolov8n-c2f-fla-seed0", "yolov8n-seed1")
    ]
    assert len(runs) == 6


def test_the_recipe_sets_no_seed_and_one_size() -> None:
    stages = stages_of(RECIPE)
    assert not any("seed" in stage for stage in stages)
    assert {stage["imgsz"] for stage in stages} == {320}


def test_sizes_are_of_the_data_sets_classes() -> None:
    plain, fla = (size_of(arch, 3, 64) for arch in (PLAIN, FLA))
    assert plain["parameters"] == 3_011_433  # what ultralytics says of yolov8n with three classes
    assert fla["parameters"] > plain["parameters"]
    assert fla["gflops"] > plain["gflops"] > 0


def test_nothing_to_measure_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        main(["--data", "data.yaml", "--runs", str(tmp_path), "--no-train"])


def test_the_best_is_found_among_the_seeds_that_all_have() -> None:
    text = text_of({PLAIN: [0.60, 0.50], FLA: [0.58]})  # its mean of two is below
    assert "The best mean with seed 0 is that of yolov8n." in text


def test_a_run_of_another_recipe_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "stage_1").mkdir()
    used = {**stages_of(RECIPE)[0], "amp": False, "seed": 1}
    (tmp_path / "stage_1" / "args.yaml").write_text(yaml.safe_dump(used))
    check_recipe(tmp_path, 1, stages_of(RECIPE))
    with pytest.raises(ValueError, match="seed is 1, in the recipe 2"):
        check_recipe(tmp_path, 2, stages_of(RECIPE))
    (tmp_path / "stage_1" / "args.yaml").write_text(yaml.safe_dump(used | {"epochs": 3}))
    with pytest.raises(ValueError, match="epochs is 3, in the recipe 50"):
        check_recipe(tmp_path, 1, stages_of(RECIPE))


def test_an_epoch_that_a_resumed_run_repeated_counts_once(tmp_path: Path) -> None:
    (tmp_path / "stage_1").mkdir()
    (tmp_path / "stage_1" / "results.csv").write_text(
        "epoch,metrics/mAP50(B),metrics/mAP50-95(B)\n1,0.2,0.1\n2,0.6,0.4\n2,0.7,0.5\n3,0.8,0.6\n"
    )
    assert curve_of(tmp_path) == {"map50": [0.2, 0.7, 0.8], "map50_95": [0.1, 0.5, 0.6]}


def data_set(folder: Path, repo_dir: Path) -> Path:
    """The rendered smears with their labels, as training and validation images."""
    smears = json.loads((repo_dir / "samples" / "smears.json").read_text())
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name, smear in smears.items():
        shutil.copy(repo_dir / "samples" / name, folder / "images" / name)
        width, height, lines = smear["width"], smear["height"], []
        for cell in smear["cells"]:
            x1, y1, x2, y2 = cell["box"]
            centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            size = (x2 - x1) / width, (y2 - y1) / height
            lines.append(" ".join(map(str, (cell["class_id"], *centre, *size))))
        (folder / "labels" / f"{Path(name).stem}.txt").write_text("\n".join(lines) + "\n")
    description = {
        **{"train": "images", "val": "images"},
        "names": {0: "RBC", 1: "WBC", 2: "Platelets"},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder / "data.yaml"


@pytest.mark.slow
def test_a_finished_run_is_measured_as_it_would_be_served(tmp_path: Path, repo_dir: Path) -> None:
    run = tmp_path / "runs" / f"{FLA}-seed0"
    (run / "stage_1").mkdir(parents=True)
    shutil.copy(repo_dir / "weights" / "yolov8n-fla-bccd.pt", run / "best.pt")
    (run / "stage_1" / "results.csv").write_text(
        "epoch,metrics/mAP50(B),metrics/mAP50-95(B)\n1,0.2,0.1\n2,0.6,0.4\n"
    )
    used = stages_of(RECIPE)[0] | {"seed": 0}
    (run / "stage_1" / "args.yaml").write_text(yaml.safe_dump(used))
    data = data_set(tmp_path / "data", repo_dir)
    options = ["--seeds", "0", "--no-train", "--rounds", "2", "--threads", "1"]
    main(
        ["--data", str(data), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path), *options]
    )
    measured = json.loads((tmp_path / "evidence" / "ablation.json").read_text())
    (only,) = measured["runs"]
    assert only["map50"] > 0.8  # smears of the kind it was trained on
    assert only["curve"]["map50_95"] == [0.1, 0.4]
    assert measured["missing"] == ["yolov8n-seed0", "yolov8n-c2f-fla-seed0"]
    assert measured["architectures"][FLA]["ratio"] == 1
    assert "yolov8n is missing" in (tmp_path / "ablation.md").read_text()
    assert (tmp_path / "evidence" / "ablation.png").exists()
