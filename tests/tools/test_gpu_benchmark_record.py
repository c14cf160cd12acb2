import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.page import CPU_TITLE, page, table
from benchmarks.gpu.record import (
    DoNotMatch,
    allotted_s,
    finite,
    merged,
    new_record,
    read_record,
    write_record,
)
from benchmarks.gpu.targets import verdicts

MACHINE = {
    "cpu": "a CPU",
    "cpus": 16,
    "onnxruntime": "1.31.1",
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": 13000,
    "cudnn": 91300,
    "proof": {"nodes": {"CUDAExecutionProvider": 380}},
}


def part(figures: dict[str, Any], status: str = "complete", **others: Any) -> dict[str, Any]:
    return {"status": status, "began": "2026-01-01T00:00:00", "figures": figures, **others}


def spread(median: float) -> dict[str, Any]:
    return {"median": median, "lowest": median - 0.01, "highest": median + 0.01, "rounds": [median]}


def rates(per_s: float) -> dict[str, Any]:
    return {"images_per_s": spread(per_s), "call_ms": spread(1.0)}


def load(p99_ms: float | None, *, limits: bool = False, share: float = 0.7) -> dict[str, Any]:
    return {
        "share": share,
        "p50_ms": 1.0,
        "p99_ms": p99_ms,
        "offered_per_s": 700.0,
        "images_per_s": 700.0,
        "server_cpus": 3.0,
        "busiest": 0.4,
        "late_p99_ms": 0.3,
        "statuses": {"200": 7},
        "wrong": {},
        "generator_limits": limits,
    }


def arrangement(processes: int, per_s: float, share: float, p99_ms: float | None) -> dict[str, Any]:
    return {
        "http_workers": processes,
        "clients": 64,
        "images_per_s": spread(per_s),
        "to_pipeline": spread(share),
        "to_raw": spread(share / 2),
        "loads": [load(9.0)],
        "batch_1_ms": 2.0,
        "rates": [load(1.0, share=0.3), load(p99_ms)],
        "enough": True,
    }


def full(device: str = "cuda") -> dict[str, Any]:
    """A record in which every target is just met."""
    record = new_record(device, "a" * 64, MACHINE)
    halves = [
        {"variant": variant, "batch": batch, "ratio": spread(ratio)}
        for variant, batch, ratio in (
            ("plain", 8, 1.0),
            ("plain", 16, 1.6),
            ("CUDA graphs", 16, 1.0),
        )
    ]
    rows = [{"variant": "plain", "precision": "fp16", "batch": 16, **rates(4000.0)}]
    record["parts"]["raw"] = part({"rows": rows, "fp16_to_fp32": halves, "failed": {}})
    pair = {"variant": "plain", "precision": "fp16", "fla": rates(1.0), "plain": rates(1.0)}
    record["parts"]["fla"] = part(
        {"rows": [{**pair, "batch": 1, "time_ratio": spread(1.1)},
                  {**pair, "batch": 8, "time_ratio": spread(1.0)},
                  {**pair, "batch": 8, "variant": "CUDA graphs", "time_ratio": spread(2.0)}]}
    )  # fmt: skip
    size = {"precision": "fp32", "batch": 1, "tokens": 400, "channels": 256}
    both = {"ours": rates(2.0), "published": rates(1.0)}
    record["parts"]["block"] = part(
        {"rows": [{**size, **both, "graph": False, "time_ratio": spread(0.6)},
                  {**size, **both, "graph": True, "time_ratio": spread(0.9)}]},
        settings={"cuda": {}},
    )  # fmt: skip
    record["parts"]["server"] = part(
        {"arrangements": [arrangement(1, 1000.0, 0.5, 90.0), arrangement(4, 2000.0, 0.85, 8.0)]}
    )
    record["parts"]["memory"] = part(
        {"of": "GPU memory in use", "batches": 10, "largest_batch": 4, "relative_difference": 0.01,
         "before_bytes": 10, "warm_bytes": 110, "after_bytes": 111}
    )  # fmt: skip
    return record


def words(record: dict[str, Any]) -> list[str]:
    return [each.verdict for each in verdicts(record)]


def test_figures_that_are_just_as_wanted_meet_every_target() -> None:
    assert words(full()) == ["met"] * 6


@pytest.mark.parametrize(
    ("target", "path", "value"),
    [
        (0, ("raw", "fp16_to_fp32", 1, "ratio"), spread(1.59)),
        (1, ("fla", "rows", 0, "time_ratio"), spread(1.11)),
        (2, ("block", "rows", 0, "time_ratio"), spread(0.61)),
        (3, ("server", "arrangements", 1, "to_pipeline"), spread(0.84)),
        (4, ("server", "arrangements", 1, "rates", 1, "p99_ms"), 8.1),
        (5, ("memory", "relative_difference"), 0.011),
    ],
)
def test_a_figure_beyond_its_limit_is_not_met_and_alone_so(
    target: int, path: tuple[Any, ...], value: Any
) -> None:
    record = full()
    place = record["parts"][path[0]]["figures"]
    for key in path[1:-1]:
        place = place[key]
    place[path[-1]] = value
    expected = ["met"] * 6
    expected[target] = "not met"
    assert words(record) == expected


@pytest.mark.parametrize(("name", "targets"), [("raw", [0]), ("server", [3, 4]), ("memory", [5])])
def test_what_was_not_run_is_not_measured(name: str, targets: list[int]) -> None:
    record = full()
    del record["parts"][name]
    assert [i for i, word in enumerate(words(record)) if word == "not measured"] == targets
    remarks = [verdicts(record)[i].remark for i in targets]
    assert remarks == [f"part {name} was not run"] * len(targets)


def test_a_part_that_failed_without_figures_is_not_measured() -> None:
    record = full()
    record["parts"]["raw"] = {"status": "failed", "began": "", "error": "exit code 1"}
    assert verdicts(record)[0].remark == "part raw: failed"
    assert "exit code 1" in page(record)


def test_no_good_answer_at_70_percent_is_no_figure() -> None:
    record = full()
    record["parts"]["server"]["figures"]["arrangements"][1]["rates"][1]["p99_ms"] = None
    assert words(record)[4] == "not measured"


def test_where_the_generator_was_the_limit_the_table_says_so() -> None:
    record = full()
    record["parts"]["server"]["figures"]["arrangements"][1]["loads"] = [load(1.0, limits=True)]
    record["parts"]["server"]["status"] = "cut short"
    remark = verdicts(record)[3].remark
    assert "the generator may have been the limit" in remark
    assert "part server was cut short" in remark
    assert remark.startswith("4 HTTP worker(s), 64 clients; 0.42 of the session alone")


def test_on_a_cpu_nothing_is_measured_and_the_title_says_so() -> None:
    record = full("cpu")
    assert words(record) == ["not measured"] * 6
    assert page(record).startswith(CPU_TITLE)
    assert "trial" in CPU_TITLE
    assert page(full()).startswith("# GPU benchmark\n")


def test_the_page_has_machine_targets_and_a_table_for_each_part() -> None:
    text = page(full())
    assert "NVIDIA H200, a CPU, 16 CPUs, driver 580.1, CUDA 13000, cuDNN 91300" in text
    assert (
        "| server at saturation against the pipeline | ≥ 0.85 | 0.85 (0.84 to 0.86) | met |" in text
    )
    for title in ("(a) Session alone", "(c) Server", "(d) The attention block", "(f) Memory"):
        assert f"## {title}\n" in text
    assert "## (b)" not in text


def test_a_table_keeps_its_columns_whatever_is_in_a_cell() -> None:
    assert table(["a", "b"], [["x|y", "z"]]).splitlines()[2] == "| x/y | z |"
    assert table(["a"], []) == ""


def test_a_record_comes_back_as_it_was_written_and_without_nan(tmp_path: Path) -> None:
    record = full()
    record["parts"]["raw"]["figures"]["rows"][0]["call_ms"]["median"] = math.nan
    file = tmp_path / "gpu.json"
    write_record(record, file)
    assert "NaN" not in file.read_text()
    assert read_record(file) == finite(record)
    assert [each.name for each in tmp_path.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 1}', '{"schema": 2, "parts": {}}', '{"schema": 1, "parts": []}']
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"gpu\.json"):
        read_record(file)


def test_parts_of_several_calls_stand_together() -> None:
    one, two = full(), full()
    for record, kept in ((one, ("raw", "server")), (two, ("memory",))):
        record["parts"] = {name: record["parts"][name] for name in kept}
    assert set(merged([one, two])["parts"]) == {"raw", "server", "memory"}
    assert merged([one])["parts"] == one["parts"]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("complete", "complete", 2),
        ("complete", "cut short", 1),
        ("complete", "failed", 1),
        ("failed", "cut short", 2),
        ("failed", "failed", 2),
    ],
)
def test_of_a_part_that_was_run_twice_the_better_one_stays_else_the_later(
    first: str, second: str, kept: int
) -> None:
    one, two = full(), full()
    one["parts"] = {"raw": part({"n": 1}, first)}
    two["parts"] = {"raw": part({"n": 2}, second)}
    assert merged([one, two])["parts"]["raw"]["figures"]["n"] == kept


@pytest.mark.parametrize("key", ["driver", "onnxruntime", "gpu"])
def test_figures_of_different_machines_are_not_put_together(key: str) -> None:
    one, two = full(), copy.deepcopy(full())
    two["machine"][key] = "another"
    with pytest.raises(DoNotMatch, match=f"{key}: .* and 'another'"):
        merged([one, two])


def test_figures_of_a_cpu_and_of_other_inputs_are_not_put_together() -> None:
    other = full()
    other["inputs"] = "b" * 64
    with pytest.raises(DoNotMatch, match="device: 'cuda' and 'cpu'"):
        merged([full(), full("cpu")])
    with pytest.raises(DoNotMatch, match="inputs"):
        merged([full(), other])


def test_time_is_divided_by_weight_and_what_one_leaves_is_for_the_others() -> None:
    assert allotted_s({"a": 1, "b": 3}, 100) == 25
    assert allotted_s({"b": 3}, 90) == 90
    assert allotted_s({"a": 1, "b": 1}, 0) == 0


def test_a_record_is_json_that_any_reader_takes() -> None:
    assert json.loads(json.dumps(finite({"a": (1.0, math.inf), 2: [math.nan]}))) == {
        "a": [1.0, None],
        "2": [None],
    }
