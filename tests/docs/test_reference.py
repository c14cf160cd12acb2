"""docs/reference/ tells of all that the code has, as the code has it."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from reference import PAGES, filled, generated_names
from reference_errors import ADVICE, ADVICE_AT_START, WHEN, all_faults, all_starts
from reference_metrics import LABEL_VALUES, all_metrics
from reference_settings import all_settings

from server.errors import ServerError
from server.http.errors import rejection_reasons
from server.observability.gpu_metrics import GpuCollector
from tests.support.artifacts import tiny_artifact
from tests.support.nvml import Driver
from tests.support.serving import served

COMMAND = "write it anew: python docs/_hooks/reference.py"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["settings.md", "metrics.md", "errors.md"])
def test_the_page_is_as_the_code_says(name: str) -> None:
    assert filled(page(name)) == page(name), COMMAND


@pytest.mark.parametrize(
    ("name", "kind", "there"),
    [
        ("settings.md", "settings", all_settings()),
        ("metrics.md", "metrics", set(all_metrics())),
        ("metrics.md", "labels", {each for m in all_metrics().values() for each in m.labels}),
        ("errors.md", "errors", set(all_faults())),
        ("errors.md", "starts", set(all_starts())),
    ],
)
def test_each_has_its_place_once(name: str, kind: str, there: set[str]) -> None:
    names = list(generated_names(page(name), kind))
    assert sorted(names) == sorted(there)


def test_there_is_advice_for_every_error_and_for_nothing_that_is_gone() -> None:
    assert set(ADVICE) == set(all_faults())
    assert set(ADVICE_AT_START) == set(all_starts())
    assert set(WHEN) <= set(all_faults())
    assert set(LABEL_VALUES) == {each for m in all_metrics().values() for each in m.labels}


def test_every_class_of_error_is_a_code_of_the_page_or_has_such_below_it() -> None:
    codes = set(all_faults()) | set(all_starts()) | {"session_lost"}
    pending = [ServerError]
    while pending:
        kind = pending.pop()
        pending += (each for each in kind.__subclasses__() if each.__module__ == "server.errors")
        assert kind.__subclasses__() or kind.code in codes, kind
    assert set(rejection_reasons()) <= codes


def test_the_gpus_metrics_are_those_that_the_driver_is_asked_for() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(Driver()))
    driver_families = {family.name: family for family in registry.collect()}
    known = {name: each for name, each in all_metrics().items() if name.startswith("detector_gpu")}
    assert set(driver_families) == set(known)
    for name, family in driver_families.items():
        assert tuple(family.samples[0].labels) == known[name].labels


@pytest.mark.anyio
async def test_a_server_has_no_metric_that_the_page_lacks(tmp_path: Path) -> None:
    async with served(tiny_artifact(tmp_path / "tiny.onnx")) as running:
        text = (await running.client.get("/metrics")).text
    typed = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    known = {name: each.kind for name, each in all_metrics().items()}
    for name, kind in typed:
        if name.startswith("process_"):
            assert f"`{name}`" in page("metrics.md")
        else:
            assert known[name] == kind
