import io
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gpu_run
import gpu_run_parts
import gpu_run_target
import gpu_run_wheels
import pytest
from gpu_run_parts import Incomplete
from gpu_run_wheels import Unresolved
from packaging.requirements import Requirement

HERE = "{}.{}".format(*sys.version_info)


def wheel(folder: Path, name: str, *needs: str, python: str = ">=3.11", size: int = 0) -> Path:
    """A wheel, version 1.0, that asks for others; without code."""
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", f"Requires-Python: {python}"]
    lines += [f"Requires-Dist: {each}" for each in needs]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.name[:-18]}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr("filling", os.urandom(size))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three wheels in parts of 1,000 bytes."""
    source, out = tmp_path / "wheels", tmp_path / "out"
    source.mkdir()
    wheels = [wheel(source, name, size=1500) for name in ("a", "b", "c")]
    gpu_run_parts.split(wheels, out, part_bytes=1000, python=HERE)
    return out


def carried(parts: Path) -> list[Path]:
    return sorted(parts.glob("part-*"))


def test_parts_that_come_one_by_one_in_any_order_give_the_wheels_again(
    parts: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    folders = carried(parts)
    assert len(folders) > 3
    assert all((each / "data").stat().st_size <= 1000 for each in folders)
    left = [len(gpu_run_parts.add(folder, store)) for folder in reversed(folders)]
    assert left == sorted(left, reverse=True)
    assert left[-2] > 0 == left[-1]
    wheels = gpu_run_parts.join(store, tmp_path / "joined")
    assert [each.name[0] for each in wheels] == ["a", "b", "c"]
    for each in wheels:
        assert each.read_bytes() == (tmp_path / "wheels" / each.name).read_bytes()
    assert not (store / "whole.tar").exists()


def test_parts_that_come_together_do_as_well(parts: Path, tmp_path: Path) -> None:
    assert gpu_run_parts.add(parts, tmp_path / "store") == []


def test_a_missing_part_is_named(parts: Path, tmp_path: Path) -> None:
    first, *_, last = carried(parts)
    gpu_run_parts.add(first, tmp_path / "store")
    with pytest.raises(Incomplete, match=last.name):
        gpu_run_parts.join(tmp_path / "store", tmp_path / "joined")


def test_a_part_that_changed_on_its_way_is_not_taken(parts: Path, tmp_path: Path) -> None:
    first, second, *_ = carried(parts)
    gpu_run_parts.add(first, tmp_path / "store")
    (second / "data").write_bytes((second / "data").read_bytes()[:-1])
    with pytest.raises(Incomplete, match="carry it again"):
        gpu_run_parts.add(second, tmp_path / "store")
    assert second.name in gpu_run_parts.missing(tmp_path / "store")


def test_a_part_that_changed_in_the_store_is_named(parts: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    gpu_run_parts.add(parts, store)
    (store / "part-01").write_bytes(b"other")
    with pytest.raises(Incomplete, match="part-01: damaged"):
        gpu_run_parts.join(store, tmp_path / "joined")


def test_parts_of_another_set_are_not_mixed_in(parts: Path, tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    gpu_run_parts.add(parts, store)
    gpu_run_parts.split([wheel(tmp_path, "d")], other, part_bytes=10**6, python=HERE)
    assert gpu_run_parts.add(other, store) == []
    assert [each.name[0] for each in gpu_run_parts.join(store, tmp_path / "joined")] == ["d"]


def test_wheels_for_another_python_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_run_parts.split([wheel(tmp_path, "d")], tmp_path / "out", part_bytes=10**6, python="2.7")
    store = str(tmp_path / "store")
    assert gpu_run.main(["add", str(tmp_path / "out"), store]) == 0
    assert "all parts are there" in capsys.readouterr().out
    assert gpu_run.main(["install", store]) == 1
    assert "the wheels are for Python 2.7" in capsys.readouterr().err


def test_a_command_before_its_turn_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_run.main(["test", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no environment; `install` makes it" in capsys.readouterr().err
    assert gpu_run.main(["install", str(tmp_path)]) == 1
    assert "parts.json" in capsys.readouterr().err


class Index:
    """Stands in for a package registry: makes the wheels that are asked for."""

    def __init__(self, **needs: Sequence[str]) -> None:
        self.needs = {name.replace("_", "-"): lines for name, lines in needs.items()}
        self.pins = dict.fromkeys(self.needs, "1.0")

    def fetch(self, lines: Sequence[str], folder: Path) -> None:
        for line in lines:
            name, version = line.split("==")
            assert version == "1.0"
            wheel(folder, name, *self.needs[name])

    def collect(self, folder: Path, *wanted: str, python: str = "3.12") -> list[str]:
        requirements = [Requirement(each) for each in wanted]
        found = gpu_run_wheels.collect(folder, requirements, self.pins, python, self.fetch)
        return [each.name.partition("-")[0] for each in found]


def test_all_that_a_package_needs_there_is_collected(tmp_path: Path) -> None:
    index = Index(
        top=["middle[fast]>=0.5", "old; python_version < '3.12'", "new; python_version >= '3.12'"],
        middle=["low", "quick; extra == 'fast'", "slow; extra == 'slow'", "top"],
        low=["win; sys_platform == 'win32'"],
        quick=[],
        new=[],
        unrelated=[],
    )
    assert index.collect(tmp_path, "top") == ["low", "middle", "new", "quick", "top"]


def test_an_extra_that_is_asked_for_later_is_collected_too(tmp_path: Path) -> None:
    index = Index(a=["b", "c"], b=[], c=["b[more]"], extra_one=[])
    index.needs["b"] = ["extra-one; extra == 'more'"]
    assert index.collect(tmp_path, "a") == ["a", "b", "c", "extra_one"]


@pytest.mark.parametrize(
    ("needs", "problem"),
    [
        ("other", "top asks for other, which constraints.txt does not pin"),
        ("low>=2", "top asks for low>=2, constraints.txt has 1.0"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, needs: str, problem: str) -> None:
    with pytest.raises(Unresolved, match=problem):
        Index(top=[needs], low=[]).collect(tmp_path, "top")


def test_a_wheel_for_another_python_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, "top", python="<3.12")
    with pytest.raises(Unresolved, match=r"not for Python 3\.12"):
        Index(top=[]).collect(tmp_path, "top")


def test_the_run_needs_onnx_runtime_for_gpus_and_no_cuda_unless_told() -> None:
    without = {each.name: each for each in gpu_run_wheels.wanted(with_cuda=False)}
    assert {"onnxruntime-gpu", "nvidia-ml-py", "fastapi", "httpx", "pytest"} <= without.keys()
    assert "onnxruntime" not in without
    assert without["onnxruntime-gpu"].extras == set()
    brought = {each.name: each for each in gpu_run_wheels.wanted(with_cuda=True)}
    assert brought["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    assert without.keys() <= gpu_run_wheels.pins().keys()


def environment(folder: Path) -> Path:
    """The Python of something that looks like an environment."""
    (folder / "lib/python3.12/site-packages").mkdir(parents=True)
    return folder / "bin/python"


def cuda_packages(folder: Path) -> Path:
    library = folder / "nvidia/cu13/lib/libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    return folder


def test_the_cuda_libraries_of_another_python_are_linked(tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    other, another = cuda_packages(tmp_path / "one"), cuda_packages(tmp_path / "two")
    (tmp_path / "none").mkdir()
    for expected in (other, another):  # the second time over the link of the first
        gpu_run_target.link_cuda(python, [tmp_path / "none", expected])
        linked = tmp_path / "env/lib/python3.12/site-packages/nvidia"
        assert linked.resolve() == expected / "nvidia"


def test_libraries_of_the_environment_stay(tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    own = cuda_packages(tmp_path / "env/lib/python3.12/site-packages")
    assert gpu_run_target.link_cuda(python, [cuda_packages(tmp_path / "one")]) is None
    assert not (own / "nvidia").is_symlink()


def test_a_step_that_takes_too_long_is_ended_and_what_it_said_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = "import time\nprint('begun')\ntry:\n  time.sleep(60)\nexcept BaseException as error:"
    program += "\n  print('told', type(error).__name__)"
    log = io.StringIO()
    assert gpu_run_target.run([sys.executable, "-c", program], log, 2) == 124
    assert "begun" in log.getvalue()
    assert "told KeyboardInterrupt" in log.getvalue()
    assert "told KeyboardInterrupt" in capsys.readouterr().out


def test_a_step_gives_its_exit_code_and_nothing_of_the_callers_python() -> None:
    log = io.StringIO()
    program = "import os, sys; print(os.environ.get('PYTHONPATH')); sys.exit(3)"
    os.environ["PYTHONPATH"] = "/elsewhere"
    try:
        assert gpu_run_target.run([sys.executable, "-c", program], log, 60) == 3
    finally:
        del os.environ["PYTHONPATH"]
    assert "\nNone\n" in log.getvalue()
    assert gpu_run_target.run(["no-such-program"], log, 60) == 127


def test_a_log_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run_target, "LOG_BYTES", 1000)
    log = io.StringIO()
    program = "for _ in range(99): print('x' * 99)"
    assert gpu_run_target.run([sys.executable, "-c", program], log, 60) == 0
    assert log.tell() < 1200


def test_too_much_output_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(gpu_run_target.FILES):
        (tmp_path / f"{i}.txt").touch()
    assert gpu_run_target.check_output(tmp_path)
    (tmp_path / "one-more.txt").touch()
    assert not gpu_run_target.check_output(tmp_path)
    assert "9 files, more than 8" in capsys.readouterr().err


def test_all_files_of_gpu_tests_are_known() -> None:
    there = {path.stem.removeprefix("test_") for path in Path("tests/gpu").glob("test_*.py")}
    assert set(gpu_run_target.TEST_FILES) == there


def test_what_follows_the_dashes_is_anothers() -> None:
    assert gpu_run.split_at_dashes(["a", "--", "b", "--", "c"]) == (["a"], ["b", "--", "c"])
    assert gpu_run.split_at_dashes(["a"]) == (["a"], [])


def test_the_list_of_parts_is_in_each_of_them(parts: Path) -> None:
    lists = {(each / "parts.json").read_text() for each in carried(parts)}
    assert len(lists) == 1
    assert set(json.loads(lists.pop())) == {"python", "parts", "wheels"}
