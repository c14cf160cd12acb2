"""Prometheus' answers in words."""

import math

from benchmarks.dashboard.__main__ import describe_series, headed
from benchmarks.dashboard.prometheus import Series
from benchmarks.dashboard.queries import PanelQuery


def query(legend: str) -> PanelQuery:
    return PanelQuery("Row", "Panel", legend, "none", "up")


def test_one_series_is_its_value() -> None:
    assert describe_series(query("{{instance}}"), [Series({"instance": "a:1"}, 0.123456)]) == [
        "0.1235"
    ]


def test_of_several_series_the_largest_come_first_and_the_rest_is_counted() -> None:
    found = [Series({"reason": str(i)}, float(i)) for i in range(9)]
    assert describe_series(query("{{reason}}"), found) == [
        *(f"{i} {i}" for i in (8, 7, 6, 5, 4, 3)),
        "and 3 that are less or 0",
    ]


def test_series_that_are_all_zero_are_an_answer_and_those_without_a_value_are_none() -> None:
    zeros = [Series({"reason": reason}, 0.0) for reason in "ab"]
    assert describe_series(query("{{reason}}"), zeros) == ["a 0", "and 1 that are less or 0"]
    assert describe_series(query("{{reason}}"), [Series({}, math.nan)]) == []
    assert describe_series(query("{{reason}}"), []) == []


def test_a_histogram_is_told_by_its_bars() -> None:
    found = [Series({"le": le}, value) for le, value in (("+Inf", 9), ("2.0", 9), ("1.0", 7))]
    assert describe_series(query("{{le}}"), found) == [
        "up to 1.0: 7",
        "up to 2.0: 2",
        "and 1 that are less or 0",
    ]


def test_a_table_is_told_by_its_labels() -> None:
    found = [Series({"name": "n", "device": "cpu"}, 1)]
    assert describe_series(query(""), found) == ["name=n, device=cpu"]


def test_a_panel_of_several_lines_says_which() -> None:
    assert headed(query("p99")) == "Panel: p99"
    assert headed(query("limit of {{instance}}")) == "Panel: limit"
    assert headed(query("busy, {{instance}}")) == "Panel: busy"
    assert headed(query("GPU {{gpu}}, {{instance}}")) == "Panel"
