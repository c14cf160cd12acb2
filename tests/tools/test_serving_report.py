import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.__main__ import write_results
from benchmarks.serving.remarks import remarks
from benchmarks.serving.report import best_peer, case_table, claims, page, ratio_by_round

COUNTS = {"requests": 10, "statuses": {"200": 10}, "wrong": {}}


def row(i: int, case: str, name: str, **figures: Any) -> dict[str, Any]:
    return {"round": i, "case": case, "name": name, "arrangement": "so"} | COUNTS | figures


ROWS = [
    row(0, "saturated", "ours", images_per_s=40.0, p50_ms=800.0, generator_cpus=0.02),
    row(0, "saturated", "limit", images_per_s=40.0),
    row(0, "saturated", "mosec", images_per_s=20.0),
    row(0, "saturated", "FastAPI", images_per_s=38.0),
    # The machine was busy in this round: half of everything.
    row(1, "saturated", "ours", images_per_s=20.0),
    row(1, "saturated", "limit", images_per_s=20.0),
    row(1, "saturated", "mosec", images_per_s=10.0),
    row(1, "saturated", "FastAPI", failed="no"),
    row(0, "lone", "ours", p50_ms=33.0),
    row(0, "lone", "limit", p50_ms=30.0),
    row(0, "lone", "mosec", p50_ms=40.0),
]
FIGURES: dict[str, Any] = {
    "metadata": {
        "cpu": "a CPU", "cpus": 2, "clients": 32, "date": "2026-01-01", "rounds": 2,
        "seconds": 6, "warm_s": 1.5, "images": 3,
    },
    "cases": [
        {"name": "saturated", "title": "32 clients", "clients": 32, "shapes": "all: 3 at 64x64"},
        {"name": "lone", "title": "one client", "clients": 1, "shapes": "all: 3 at 64x64"},
    ],
    "rows": ROWS,
    "curve": [
        {
            "name": "ours", "offered_per_s": 10.0, "images_per_s": 9.9, "p50_ms": 40.0,
            "requests": 61, "seconds": 6.0,
            "p95_ms": 60.0, "p99_ms": 90.0, "statuses": {"200": 60, "503": 1}, "late_p99_ms": 1.0,
        }
    ],
}  # fmt: skip


def test_ratios_are_taken_within_rounds_that_have_both() -> None:
    assert ratio_by_round(ROWS, "saturated", "ours", "mosec", "images_per_s") == [2.0, 2.0]
    fastapi = ratio_by_round(ROWS, "saturated", "ours", "FastAPI", "images_per_s")
    assert fastapi == pytest.approx([40 / 38])


def test_the_best_peer_has_the_highest_rate_or_the_shortest_wait() -> None:
    assert best_peer(ROWS, "saturated", "images_per_s") == "FastAPI"
    assert best_peer(ROWS, "lone", "p50_ms") == "mosec"
    assert best_peer(ROWS, "wide", "images_per_s") is None


def test_a_claim_holds_on_the_right_side_of_its_bound_and_not_unmeasured() -> None:
    found = {claim.text: claim for claim in claims(ROWS)}
    assert found["saturated: fp32 to the limit"].ratio == 1
    assert found["saturated: fp32 to the limit"].holds
    assert found["saturated: fp32 to the best peer (FastAPI)"].holds  # 1.053
    assert found["lone client: fp32 median to in-process"].ratio == pytest.approx(1.1)
    assert found["lone client: fp32 median to in-process"].holds
    assert found["lone client: fp32 median to the best peer (mosec)"].holds
    slow = [row(0, "lone", "ours", p50_ms=41.0), row(0, "lone", "mosec", p50_ms=40.0)]
    (claim,) = (each for each in claims(slow) if each.text.endswith("(mosec)"))
    assert not claim.holds
    assert not found["16:9: fp32 to the best peer (no peer)"].holds


def test_a_table_shows_failures_and_contestants_that_did_not_start() -> None:
    rows = [
        row(
            0, "saturated", "ours", images_per_s=1.0, statuses={"200": 7, "503": 3}, wrong={"x": 2}
        ),
        row(0, "saturated", "mosec", failed="no module"),
    ]
    table = case_table(rows)
    assert "5 of 10" in table
    assert "| mosec | did not start |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_and_the_plot_show_every_case(tmp_path: Path) -> None:
    content = page(FIGURES)
    assert "## 32 clients" in content
    assert "## One client" in content
    assert "| ours | so | 30.0 (20.0 to 40.0) |" in content
    assert "60 × 200, 1 × 503" in content
    assert "| ours | 10.0 | 10.2 | 9.9 |" in content
    write_results(FIGURES, tmp_path)
    assert (tmp_path / "serving-benchmark.md").read_text(encoding="utf-8") == content
    for name in re.findall(r"\]\(([^)]*)\)", content):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "evidence" / "serving.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "evidence" / "serving.json").read_text()) == FIGURES


def test_windows_that_used_half_of_the_cpus_are_told() -> None:
    busy = row(0, "saturated", "FastAPI", images_per_s=40.0, p50_ms=800.0, server_cpus=1.9)
    half = row(1, "saturated", "FastAPI", images_per_s=20.0, p50_ms=1600.0, server_cpus=1.0)
    (told,) = remarks([busy, half], FIGURES["cases"], cpus=2)
    assert "FastAPI in 1 of 2 windows" in told
    assert not remarks([busy], FIGURES["cases"], cpus=2)
    alone = row(0, "lone", "FastAPI", images_per_s=20.0, p50_ms=50.0, server_cpus=1.0)
    assert not remarks([alone], FIGURES["cases"], cpus=2)  # one client can't use more


def test_clients_that_are_not_served_alike_are_told() -> None:
    # 32 clients at 40/s wait 800 ms on average.
    alike = row(0, "saturated", "mosec", images_per_s=40.0, p50_ms=810.0)
    uneven = row(0, "saturated", "FastAPI", images_per_s=40.0, p50_ms=1250.0)
    (told,) = remarks([alike, uneven], FIGURES["cases"], cpus=2)
    assert "FastAPI in 1 of 1 windows" in told
    assert "mosec" not in told


def test_cpus_that_changed_their_speed_are_told() -> None:
    costs = [
        row(i, "saturated", "ours", images_per_s=40.0, p50_ms=800.0, server_cpu_ms_per_image=cost)
        for i, cost in enumerate((20.0, 30.0))
    ]
    (told,) = remarks(costs, FIGURES["cases"], cpus=2)
    assert "1.50 times" in told
    assert not remarks(costs[:1], FIGURES["cases"], cpus=2)


def test_the_page_in_the_documentation_is_what_its_figures_make(repo_dir: Path) -> None:
    figures = json.loads((repo_dir / "docs/evidence/serving.json").read_text(encoding="utf-8"))
    written = (repo_dir / "docs/serving-benchmark.md").read_text(encoding="utf-8")
    assert written == page(figures)
