import argparse
import fcntl
import hashlib
import itertools
import json
import signal
import subprocess
import sys
import tarfile
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest

from benchmarks.gpu.__main__ import cuda_option, numbers, parts_of
from benchmarks.gpu.bench import Job
from benchmarks.gpu.kernels import summed
from benchmarks.gpu.machine import (
    NotOnGpu,
    library_version,
    parse_smi,
    read_nvml,
    refuse_unless_proven,
    visible_index,
)
from benchmarks.gpu.manifest import InputsInvalid, read_inputs, unpacked, write_manifest
from benchmarks.gpu.memory import relative_difference
from benchmarks.gpu.parity import Found, agreement
from benchmarks.gpu.part import PARTS, run
from benchmarks.gpu.pipeline import candidates
from benchmarks.gpu.rounds import Contender, Deadline, Window, ratio, spread, turns, window
from benchmarks.gpu.server import fewest_that_saturate
from benchmarks.gpu.sweep import CHOICES, DEFAULT
from benchmarks.load.child import run_part
from benchmarks.load.generator import about
from benchmarks.load.generators import figures, split, together
from benchmarks.load.generators import unpacked as unpacked_load
from benchmarks.load.http_client import Answer
from benchmarks.load.loops import Load, Outcome

NEVER = Deadline(time.monotonic() + 1e6)
PAST = Deadline(time.monotonic() - 1)


# Rounds


def test_everyone_has_one_window_a_round_and_every_second_round_is_in_reverse() -> None:
    order: list[str] = []

    def measure(name: str) -> Any:
        return lambda: order.append(name) or Window(float(len(order)), 1.0, 1)  # type: ignore[func-returns-value]

    rounds = list(turns({"a": measure("a"), "b": measure("b")}, NEVER, at_most=3))[-1]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [each["a"].images_per_s for each in rounds] == [1, 4, 5]
    assert ratio(rounds, "b", "a")["rounds"] == [2 / 1, 3 / 4, 6 / 5]
    assert list(rounds[1]) == ["a", "b"]


def test_without_time_there_are_as_many_rounds_as_have_to_be() -> None:
    measures = {"a": lambda: Window(1.0, 1.0, 1)}
    # What a reader of each round decides: here, to go on although time is up.
    assert len(list(turns(measures, PAST, at_least=2))) == 2


def test_a_window_counts_the_calls_of_all_callers_and_not_the_first() -> None:
    seen: set[int] = set()
    together_ = threading.Barrier(2)

    def call() -> None:
        if threading.current_thread() is not threading.main_thread():
            seen.add(threading.get_ident())
            together_.wait(20)  # a caller alone would not get on

    found = window(Contender("x", call, images=4, callers=2), 0.0, at_least=3)
    assert found.calls == 6
    assert len(seen) == 2
    calls: list[int] = []
    once = window(Contender("x", lambda: calls.append(1), images=2), 0.0, at_least=3)
    assert (once.calls, len(calls)) == (3, 4)
    assert once.images_per_s > 0


def test_a_spread_is_median_and_ends() -> None:
    found = spread([3.0, 1.0, 2.0, 10.0])
    assert (found["median"], found["lowest"], found["highest"]) == (2.5, 1.0, 10.0)


# The command line


def test_parts_are_named_or_lettered_and_come_in_their_order() -> None:
    assert parts_of("d,raw") == ["raw", "fla", "block"]
    assert parts_of("a") == ["raw", "tensorrt", "options"]
    assert parts_of("memory,memory") == ["memory"]
    with pytest.raises(argparse.ArgumentTypeError, match="speed"):
        parts_of("raw,speed")
    letters = {letter for _, letter, _ in PARTS.values() if letter}
    assert letters == set("abcdef")


def test_batches_are_different_ascending_and_positive() -> None:
    assert numbers("8,1,8") == (1, 8)
    with pytest.raises(argparse.ArgumentTypeError):
        numbers("0,1")


def test_an_option_of_the_cuda_provider_is_a_name_and_a_value() -> None:
    assert cuda_option("use_tf32=1") == ("use_tf32", "1")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        cuda_option("use_tf32")


def test_a_job_comes_through_json_as_it_was() -> None:
    job = Job(
        "cuda:1", "in", 5.0, (1, 2), {"use_tf32": "1"}, (1, 4), ("--a", "1"), 2, (8,), {"k": {}}
    )
    assert Job.of(json.loads(json.dumps(job.as_values()))) == job


def test_every_choice_of_the_sweep_is_compared_with_another_that_is_there() -> None:
    names = [each.name for each in CHOICES]
    assert len(set(names)) == len(names)
    for choice in CHOICES:
        assert choice.against in names
        assert choice.name == DEFAULT or choice.against != choice.name


# A part in its process


def test_a_part_that_ends_is_complete_and_one_that_time_runs_out_on_is_cut_short() -> None:
    closed = []

    def measure(bench: Any) -> Any:
        try:
            for i in itertools.count(1):
                yield {"rounds": i, "enough": i >= bench.enough}
                if i == bench.last:
                    return
        finally:
            closed.append(True)

    def outcome(left_s: float, last: int, enough: int) -> list[Any]:
        bench = SimpleNamespace(deadline=SimpleNamespace(left_s=left_s), last=last, enough=enough)
        lines: list[str] = []
        out: Any = SimpleNamespace(write=lines.append, flush=lambda: None)
        run(measure, bench, out)  # type: ignore[arg-type]
        return [json.loads(line) for line in lines]

    assert [each.get("status") for each in outcome(9, 2, 2)] == [None, None, "complete"]
    assert [each.get("status") for each in outcome(-1, 9, 2)] == [None, "cut short"]
    assert [each.get("status") for each in outcome(-1, 9, 1)] == [None, "complete"]
    assert closed == [True] * 3


def part_process(code: str, **others: Any) -> tuple[dict[str, Any], list[Any]]:
    noted: list[Any] = []
    command = [sys.executable, "-c", "import json, sys, time, os, signal\n" + code]
    deadline_s = others.pop("deadline_s", time.monotonic() + 60)
    result = run_part(command, {"a": 1}, noted.append, deadline_s=deadline_s, **others)
    return result, noted


def test_figures_of_a_part_are_noted_as_they_come() -> None:
    result, noted = part_process(
        "job = json.load(sys.stdin)\n"
        "for i in (1, 2): print(json.dumps({'figures': {'n': i, **job}}), flush=True)\n"
        "print(json.dumps({'status': 'complete'}))"
    )
    assert result == {"status": "complete", "figures": {"n": 2, "a": 1}}
    assert noted == [{"n": 1, "a": 1}, {"n": 2, "a": 1}]


def test_a_part_that_dies_is_failed_with_what_it_said_and_the_figures_it_had() -> None:
    result, noted = part_process(
        "print(json.dumps({'figures': {'n': 1}}), flush=True)\n"
        "print('CUDA error 700', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert result["status"] == "failed"
    assert result["error"] == "exit code -9: CUDA error 700"
    assert result["figures"] == {"n": 1}
    assert len(noted) == 1


def test_a_part_that_does_not_come_back_is_ended_with_what_it_started() -> None:
    result, noted = part_process(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "def end(*_):\n"
        "    child.kill(); child.wait(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print(json.dumps({'figures': {'child': child.pid}}), flush=True)\n"
        "time.sleep(600)",
        deadline_s=time.monotonic() + 2,
        grace_s=0.0,
    )
    assert result["status"] == "cut short"
    (figures_,) = noted
    assert not Path(f"/proc/{figures_['child']}").exists()


# Inputs


def inputs_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("m.onnx", "p.jpg"):
        (folder / name).write_text(name)
    write_manifest(folder, models={"fla-fp32": "m.onnx"}, images=["p.jpg"], about={"made": "x"})
    return folder


def test_inputs_are_read_from_a_folder_and_from_an_archive_of_it(tmp_path: Path) -> None:
    folder = inputs_folder(tmp_path / "in")
    inputs = read_inputs(folder)
    assert inputs.models["fla-fp32"].read_text() == "m.onnx"
    text = (folder / "manifest.json").read_bytes()
    assert inputs.sha256 == hashlib.sha256(text).hexdigest()
    for inside in (".", "in"):
        with tarfile.open(tmp_path / "in.tar.xz", "w:xz") as archive:
            archive.add(folder, inside)
        with unpacked(tmp_path / "in.tar.xz") as found:
            assert read_inputs(found).sha256 == inputs.sha256
    assert not found.exists()


def test_a_file_that_is_not_the_one_that_was_made_is_refused(tmp_path: Path) -> None:
    folder = inputs_folder(tmp_path / "in")
    (folder / "m.onnx").write_text("another")
    with pytest.raises(InputsInvalid, match=r"m\.onnx: not the file"):
        read_inputs(folder)
    (folder / "m.onnx").unlink()
    with pytest.raises(InputsInvalid, match="No such file"):
        read_inputs(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputsInvalid, match="no manifest"):
        read_inputs(folder)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    folder = inputs_folder(tmp_path / "in")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(folder / "m.onnx", "../../escaped")
    with pytest.raises(InputsInvalid), unpacked(tmp_path / "bad.tar"):
        pytest.fail("it was unpacked")


# The machine


GPU_NODES = {"CUDAExecutionProvider": 380, "CPUExecutionProvider": 51}
ON_GPU = {"provider": "CUDAExecutionProvider", "nodes": GPU_NODES}
BEFORE, DURING = {"used_bytes": 1}, {"name": "NVIDIA H200", "used_bytes": 2}


def test_a_session_on_the_gpu_is_proven() -> None:
    refuse_unless_proven(ON_GPU, BEFORE, DURING)


@pytest.mark.parametrize(
    ("proof", "during", "said"),
    [
        (ON_GPU | {"provider": "CPUExecutionProvider"}, DURING, "runs on CPUExecutionProvider"),
        (ON_GPU | {"nodes": {"CPUExecutionProvider": 400}}, DURING, "most nodes"),
        (ON_GPU, {}, "names a GPU"),
        (ON_GPU, {"name": "NVIDIA H200", "used_bytes": 1}, "no GPU memory"),
    ],
)
def test_what_is_not_proven_to_run_on_a_gpu_is_refused(
    proof: dict[str, Any], during: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotOnGpu, match=said):
        refuse_unless_proven(proof, BEFORE, during)


def test_nvidia_smi_is_read_and_what_it_does_not_know_left_out() -> None:
    found = parse_smi("NVIDIA H200, 580.95.05, 1980, 3201, 35, [N/A], 612, 143771\n")
    assert found["name"] == "NVIDIA H200"
    assert found["driver"] == "580.95.05"
    assert found["used_bytes"] == 612 * 2**20
    assert "watts" not in found
    assert parse_smi("") == {}


def test_nvml_is_read_and_what_fails_left_out() -> None:
    class Failed(Exception):
        pass

    def fails(*_: Any) -> Any:
        raise Failed

    nvml = SimpleNamespace(
        NVMLError=Failed,
        NVML_CLOCK_SM=1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda gpu: f"GPU {gpu}".encode(),
        nvmlSystemGetDriverVersion=fails,
        nvmlDeviceGetClockInfo=lambda gpu, clock: 1980 + gpu + clock,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=5, total=9),
    )
    found = read_nvml(nvml, 3)
    assert found == {"name": "GPU 3", "sm_mhz": 1984, "used_bytes": 5, "total_bytes": 9}
    nvml.nvmlDeviceGetHandleByIndex = fails
    assert read_nvml(nvml, 0) == {}


def test_the_driver_counts_gpus_that_cuda_does_not_see() -> None:
    assert visible_index(0, "3,1") == 3
    assert visible_index(1, "3,1") == 1
    assert visible_index(0, None) == 0
    assert visible_index(0, "GPU-abc") == 0


def test_a_library_that_is_not_there_has_no_version() -> None:
    def load(name: str) -> Any:
        if name != "second":
            raise OSError(name)

        def get(pointer: Any) -> None:
            pointer._obj.value = 13000

        return SimpleNamespace(version=get)

    assert library_version(("first", "second"), "version", load) == 13000
    assert library_version(("first",), "version", load) is None
    assert library_version(("second",), "other", load) is None


# Detections


def found_(*rows: tuple[float, float, float, float, float, int]) -> Found:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_a_detection_is_found_again_by_class_and_overlap_once() -> None:
    expected = [found_((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.5, 1)), found_()]
    moved = [found_((0, 1, 10, 10, 0.8, 0), (50, 50, 60, 60, 0.5, 2)), found_((0, 0, 1, 1, 1, 0))]
    result = agreement(expected, moved)
    assert (result["expected"], result["found"], result["same"]) == (2, 3, 1)
    assert result["box_px"] == 1
    assert result["score"] == pytest.approx(0.1, abs=1e-6)
    twice = [found_((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))]
    assert agreement(twice, [found_((0, 0, 10, 10, 0.9, 0))])["same"] == 1


# The profile


def event(name: str, ts: int, dur: int, cat: str = "Node", **args: str) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def profile() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [event("session_initialization", 0, 9, "Session")]
    for call, begin in enumerate((100, 200, 300)):
        events += [
            event("c_kernel_time", begin + 1, 30, op_name="Conv", provider="CUDAExecutionProvider"),
            event("d_kernel_time", begin + 2, 10, op_name="Conv", provider="CUDAExecutionProvider"),
            event(
                "g_kernel_time", begin + 3, 10, op_name="Gather", provider="CPUExecutionProvider"
            ),
            event("c_fence_before", begin + 1, 99, op_name="Conv"),
            # The first call is slow; the profiler writes a call down when it has ended.
            event("model_run", begin, 900 if call == 0 else 60, "Session"),
        ]
    return events


def test_a_profile_is_summed_by_operator_and_provider_without_the_first_calls() -> None:
    found = summed(profile(), skip=1)
    assert (found["runs"], found["call_ms"], found["nodes_ms"]) == (2, 0.06, 0.05)
    assert found["of"] == "nodes"
    conv, gather = found["operators"]
    assert conv == {"operator": "Conv", "provider": "CUDA", "nodes": 2, "ms": 0.04, "share": 0.8}
    assert (gather["operator"], gather["provider"], gather["share"]) == ("Gather", "CPU", 0.2)


def test_where_the_profiler_knows_kernels_they_count() -> None:
    kernels = [event("implicit_gemm", 201, 7, "Kernel", op_name="Conv")]
    found = summed(profile() + kernels, skip=1)
    assert found["of"] == "kernels"
    assert found["operators"] == [
        {"operator": "Conv", "provider": "CUDA", "nodes": 0.5, "ms": 0.0035, "share": 1.0}
    ]


def test_a_profile_without_calls_that_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 calls in the profile, 3 of them to skip"):
        summed(profile(), skip=3)
    with pytest.raises(ValueError, match="no node took any time"):
        summed([event("model_run", 1, 2, "Session")], skip=0)


# Load


def loaded(window_s: tuple[float, float], *outcomes: tuple[float, float, float]) -> Load:
    made = [Outcome(*each, 200, 1, None) for each in outcomes]
    return Load(made, window_s, True, 0.5, None)


def test_loads_of_several_processes_count_where_all_of_them_ran() -> None:
    late = 0.5
    one = loaded((0.0, 10.0), (1.0, 1.0, 1.1), (0.1, 0.1, 0.2))
    two = loaded((0.5, 9.5), (2.0, 2.0 + late, 2.6), (9.8, 9.8, 9.9))
    both = together([one, two], None)
    assert both.window_s == (0.5, 9.5)
    assert both.generator_cpu_s == 1.0
    found = figures(both, 2)
    assert found["requests"] == 2
    assert found["late_p99_ms"] == pytest.approx(1e3 * late)
    assert found["generator_limits"]
    assert not figures(together([one], None), 1)["generator_limits"]


def test_clients_are_shared_out_to_the_last() -> None:
    assert split(7, 3) == [3, 2, 2]
    assert split(1, 3) == [1, 0, 0]


def test_the_fewest_clients_that_bring_nearly_the_most_are_taken() -> None:
    assert fewest_that_saturate({"32": 500.0, "64": 980.0, "128": 1000.0, "256": 990.0}) == 64
    assert fewest_that_saturate({"32": 10.0}) == 32


def test_an_answer_may_have_a_box_more_or_less_and_not_none() -> None:
    def answer(boxes: int) -> Answer:
        return Answer(200, {}, b'"class_id": 0,' * boxes)

    check = about(3)
    assert [check(answer(n)) is None for n in (1, 2, 3, 4, 5)] == [False, True, True, True, False]
    assert about(20)(answer(16)) is None
    assert about(20)(answer(15)) == "other number of boxes"


def test_arrangements_of_the_pipeline_are_different_and_the_likely_one_is_first() -> None:
    tried = candidates((1, 2, 4, 8, 16, 32), 16)
    assert len(set(tried)) == len(tried)
    assert (tried[0].instances, tried[0].batch, tried[0].feeders) == (1, 32, 32)
    assert {each.batch for each in tried} == {8, 16, 32}
    assert {each.batch for each in candidates((1, 2), 2)} == {2}


# Memory


def test_a_change_of_memory_is_one_of_what_the_model_holds() -> None:
    assert relative_difference(1000, 1200, 1190) == 0.05
    assert relative_difference(0, 100, 101) == 0.01
    with pytest.raises(ValueError, match="before the model was loaded"):
        relative_difference(5, 5, 6)


def test_a_generator_loses_nothing_of_a_long_answer(tmp_path: Path) -> None:
    # Its standard output is a pipe that holds less than the answer, and Python does not buffer it.
    (tmp_path / "p.jpg").write_bytes(b"x")
    code = (
        "from benchmarks.load import generator as g\n"
        "from benchmarks.load.loops import Load, Outcome\n"
        "many = [Outcome(1.25, 1.25, 1.5, 200, 1, None)] * 20_000\n"
        "async def load(*_): return Load(many, (1.0, 2.0), True, 0.5, None)\n"
        "g.load = load\n"
        "g.main()\n"
    )
    start = {"url": "", "path": "/", "images": [str(tmp_path / "p.jpg")], "counts": [1]}
    lines = [json.dumps({**start, "first": 0}), "{}"]
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n".join(lines) + "\n")
        process.stdin.close()
        deadline_s = time.monotonic() + 60
        # "ready" is in the pipe, too. Stopped while it waits for room, a process gets on with what
        # it could write until then, as at any other signal.
        while time.monotonic() < deadline_s and held(process.stdout) < 60_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        ready, answer = process.stdout.read().splitlines()
    assert json.loads(ready) == "ready"
    assert len(unpacked_load(json.loads(answer)).outcomes) == 20_000


def held(pipe: IO[str]) -> int:
    """Bytes that wait in a pipe."""
    waiting = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return int.from_bytes(waiting, sys.byteorder)
