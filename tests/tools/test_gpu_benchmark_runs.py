"""The GPU benchmark's script, tried on a CPU with models that are made in a moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.gpu.inputs import without_attention, write_images
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.record import read_record
from server.vision.decode import decode
from tests.support.gpu_inputs import tiny_inputs

LIMIT_S = 240
SMALL = ("--batches", "1,2", "--clients", "2,4", "--generators", "2")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_inputs(tmp_path_factory.mktemp("gpu") / "in")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]


def benchmark(repo: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def on_cpu(
    repo: Path, inputs: Path, out: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return benchmark(repo, "--inputs", inputs, "-o", out, "--device", "cpu", *SMALL, *arguments)


@pytest.mark.slow
def test_every_part_gives_figures_and_the_report_is_one_of_a_cpu(
    repo_dir: Path, inputs: Path, tmp_path: Path
) -> None:
    done = on_cpu(repo_dir, inputs, tmp_path, "--minutes", "1.3")
    assert done.returncode == 0, done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
    text = (tmp_path / "gpu.md").read_text()
    assert text.rstrip() == done.stdout.rstrip()
    assert text.startswith("# CPU: a trial of the GPU benchmark's script")
    assert "| met |" not in text
    assert "| not met |" not in text

    parts = read_record(tmp_path / "gpu.json")["parts"]
    assert list(parts) == list(PARTS)
    # Where other work takes the CPUs a part may run out of time; all of them have figures then.
    assert {part["status"] for part in parts.values()} <= {"complete", "cut short"}
    figures: dict[str, Any] = {name: part["figures"] for name, part in parts.items()}
    assert figures["parity"]["models"]["fp32"]["same"] == 6
    assert len(figures["raw"]["rows"]) == 4
    assert not figures["tensorrt"]["present"]
    if parts["pipeline"]["status"] == "complete":
        assert figures["pipeline"]["best"] in figures["pipeline"]["trials"]
        assert figures["server"]["pipeline"] == figures["pipeline"]["best"]
    (server,) = figures["server"]["arrangements"]
    assert server["clients_tried"]["4"] > 0
    if parts["server"]["status"] == "complete":
        assert server["to_pipeline"]["median"] > 0
        assert all(not load["wrong"] and load["generators"] == 2 for load in server["loads"])
        assert [load["share"] for load in server["rates"]] == [0.3, 0.5, 0.7, 0.9]
        assert server["rates"][0]["statuses"].keys() == {"200"}
    assert figures["fla"]["rows"][0]["time_ratio"]["median"] > 0
    assert figures["block"]["rows"][0]["tokens"] == 16
    for row in figures["kernels"]["rows"]:
        assert sum(each["share"] for each in row["operators"]) == pytest.approx(1)
    assert figures["memory"]["warm_bytes"] > figures["memory"]["before_bytes"] > 0


@pytest.mark.slow
def test_a_folder_that_has_figures_is_gone_on_with_and_calls_are_put_together(
    repo_dir: Path, inputs: Path, tmp_path: Path
) -> None:
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    few = ("--minutes", "0.4", "--parts")
    assert on_cpu(repo_dir, inputs, one, *few, "parity").returncode == 0
    before = read_record(one / "gpu.json")["parts"]["parity"]
    assert on_cpu(repo_dir, inputs, one, *few, "e").returncode == 0
    parts = read_record(one / "gpu.json")["parts"]
    assert set(parts) == {"parity", "kernels"}
    assert parts["parity"] == before
    assert on_cpu(repo_dir, inputs, two, *few, "memory").returncode == 0
    merged = benchmark(repo_dir, "merge", one / "gpu.json", two / "gpu.json", "-o", both)
    assert merged.returncode == 0, merged.stderr
    assert set(read_record(both / "gpu.json")["parts"]) == {"parity", "kernels", "memory"}

    figures = json.loads((two / "gpu.json").read_text())
    figures["machine"]["onnxruntime"] = "0.1"
    (two / "gpu.json").write_text(json.dumps(figures))
    refused = benchmark(repo_dir, "merge", one / "gpu.json", two / "gpu.json", "-o", both)
    assert refused.returncode == 2
    assert "onnxruntime" in refused.stderr
    refused = on_cpu(repo_dir, inputs, two, *few, "parity")
    assert refused.returncode == 2
    assert "has other figures" in refused.stderr
    assert json.loads((two / "gpu.json").read_text()) == figures


@pytest.mark.slow
def test_a_part_that_fails_is_told_and_the_others_give_figures(
    repo_dir: Path, inputs: Path, tmp_path: Path
) -> None:
    flags = ("--parts", "server,kernels", "--minutes", "0.6", "--server-flags=--no-such-flag 1")
    done = on_cpu(repo_dir, inputs, tmp_path, *flags)
    assert done.returncode == 1
    parts = read_record(tmp_path / "gpu.json")["parts"]
    assert parts["server"]["status"] == "failed"
    assert "no-such-flag" in parts["server"]["error"]
    assert parts["kernels"]["status"] == "complete"
    assert "part server: failed" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(repo_dir: Path, inputs: Path, tmp_path: Path) -> None:
    flags = ("--device", "cpu", *SMALL, "--parts", "raw,server", "--minutes", "9")
    process = subprocess.Popen(
        command("--inputs", inputs, "-o", tmp_path, *flags),
        cwd=repo_dir,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("raw: ")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    parts = read_record(tmp_path / "gpu.json")["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"raw": "cut short"}
    assert "Part `raw`" in out


def test_without_a_gpu_nothing_is_measured(repo_dir: Path, inputs: Path, tmp_path: Path) -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command("--inputs", inputs, "-o", tmp_path, "--parts", "raw"),
        cwd=repo_dir,
        env=hidden,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2
    assert "models do not run on cuda, so nothing is measured" in done.stderr
    assert "CUDAExecutionProvider" in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_missing_inputs_are_reported_in_a_line(
    repo_dir: Path, inputs: Path, tmp_path: Path
) -> None:
    done = on_cpu(repo_dir, inputs, tmp_path / "out", "--inputs", "nowhere")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere: no folder" in line


def test_images_have_the_shapes_of_photographs_and_the_first_few_have_all(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images")
    shapes = [decode((tmp_path / name).read_bytes(), max_pixels=10**7).shape[:2] for name in names]
    assert {(1080, 1920), (720, 1280), (480, 640), (1440, 1080)} <= set(shapes[:5])
    assert len(set(names)) == len(names) == len(list((tmp_path / "images").iterdir()))


def test_the_network_without_attention_has_the_other_layers_weights(
    repo_dir: Path, tmp_path: Path
) -> None:
    import torch

    from export.sources.checkpoint import load_checkpoint
    from export.sources.state_dict import load_state_dict_checkpoint

    checkpoint = repo_dir / "weights" / "yolov8n-fla-bccd.pt"
    names = without_attention(checkpoint, tmp_path / "plain.pt")
    assert names == ("RBC", "WBC", "Platelets")
    plain = load_state_dict_checkpoint(tmp_path / "plain.pt", "yolov8n", names).model
    trained = load_checkpoint(checkpoint).model
    ours: Any = list(trained.model)
    theirs: Any = list(plain.model)
    del ours[10]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for (name, value), (same, taken) in zip(
            mine.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert name == same
            torch.testing.assert_close(value.float(), taken.float(), rtol=0, atol=0)


@pytest.mark.slow
def test_both_forms_of_a_block_give_the_same_and_share_weights_over_batches(tmp_path: Path) -> None:
    from benchmarks.gpu.block_files import BATCHES, write_blocks

    blocks = list(write_blocks(tmp_path, [(16, 16)]))
    assert len(blocks) == 4 * len(BATCHES)
    assert len({weights for _, weights in blocks}) == 4
    x = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    outputs = {}
    for block, _ in blocks:
        session = onnxruntime.InferenceSession(
            str(tmp_path / block.file), providers=["CPUExecutionProvider"]
        )
        kind = np.float16 if block.precision == "fp16" else np.float32
        (given,) = session.get_inputs()
        assert given.name == "x"
        batch = x.repeat(block.batch, axis=0).astype(kind)
        (y,) = session.run(None, {"x": batch})
        assert y.dtype == kind
        assert y.shape == batch.shape
        outputs[block.form, block.precision, block.batch] = y[-1].astype(np.float32)
    expected = outputs["published", "fp32", 1]
    size = np.abs(expected).max()
    for (form, precision, _), found in outputs.items():
        if (form, precision) != ("published", "fp16"):
            limit = 1e-5 if precision == "fp32" else 1e-2
            assert np.abs(found - expected).max() < limit * size
