from pathlib import Path

import pytest

from server.host import cpu_quota, memory_limit

V2 = "0::/system.slice/detector.service\n"
V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"


def groups(mount: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    """Writes files of control groups; what the two functions take."""
    for name, text in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (mount / "own").write_text(own)
    return mount, mount / "own"


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "100000\n"}, "0::/\n", None),
        ({"cpu.max": "100000 0\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/../elsewhere\n", 1.5),
        ({"system.slice/detector.service/cpu.max": "50000 100000\n"}, V2, 0.5),
        ({"system.slice/cpu.max": "300000 100000\n"}, V2, 3.0),
        (
            {
                "system.slice/cpu.max": "300000 100000\n",
                "system.slice/detector.service/cpu.max": "max 100000\n",
                "cpu.max": "400000 100000\n",
            },
            V2,
            3.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None),
        (
            {
                "cpu/docker/abc/cpu.cfs_quota_us": "100000\n",
                "cpu/docker/abc/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            V1,
            1.0,
        ),
        ({}, V1, None),
        ({}, "", None),
    ],
)
def test_the_tightest_quota_on_the_way_up_counts(
    tmp_path: Path, files: dict[str, str], own: str, quota: float | None
) -> None:
    assert cpu_quota(*groups(tmp_path, files, own)) == quota


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"memory.max": "536870912\n"}, "0::/\n", 2**29),
        ({"memory.max": "max\n"}, "0::/\n", None),
        ({"system.slice/memory.max": "1000\n", "memory.max": "2000\n"}, V2, 1000),
        ({"memory/docker/abc/memory.limit_in_bytes": "4096\n"}, V1, 4096),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, V1, None),
        ({}, V2, None),
    ],
)
def test_the_tightest_memory_limit_on_the_way_up_counts(
    tmp_path: Path, files: dict[str, str], own: str, limit: int | None
) -> None:
    assert memory_limit(*groups(tmp_path, files, own)) == limit
