import os
from pathlib import Path

import pytest

from server.host import available_cpus, cpu_name, integer_instructions

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", AFFINITY), ("", AFFINITY)],
    ids=["one", "half", "no quota", "unreadable"],
)
def test_a_version_2_quota_limits_the_cpus(tmp_path: Path, content: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("100000", 1), ("-1", AFFINITY), ("9900000", AFFINITY)]
)
def test_a_version_1_quota_limits_the_cpus(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == cpus


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == AFFINITY


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bitalg", "AVX512-VNNI"),
        ("flags\t\t: fpu avx2 avx_vnni", "AVX-VNNI"),
        ("flags\t\t: avx512_vnni amx_bf16 amx_int8", "AMX-INT8"),
        ("Features\t: fp asimd asimdhp asimddp", "dot products"),
        ("flags\t\t: fpu avx2 avx512f", None),
        ("model name\t: says avx512_vnni", None),
    ],
)
def test_the_flags_of_a_cpu_say_how_it_multiplies_integers(
    tmp_path: Path, line: str, name: str | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert integer_instructions(cpuinfo) == name


def test_nothing_is_promised_of_an_unknown_cpu(tmp_path: Path) -> None:
    assert integer_instructions(tmp_path / "missing") is None


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nmodel name\t: Some CPU @ 3 GHz\nflags: a\nmodel name: B\n")
    assert cpu_name(cpuinfo) == "Some CPU @ 3 GHz"
    assert cpu_name(tmp_path / "missing")
