import io
import os
import pickle
import random
import zipfile
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from export.errors import CheckpointRefused, ModelUnsupported
from export.sources.checkpoint import load_checkpoint
from model.registration import architecture, register
from tests.support.forks import Calls, renamed, saved, small_network


@pytest.fixture(scope="module")
def network() -> DetectionModel:
    register()
    network = DetectionModel(architecture("yolov8n-fla"), nc=3, verbose=False)
    network.names = {0: "a", 1: "b", 2: "c"}
    return network


@pytest.mark.parametrize(
    "names", [{0: "a", 1: "b", "x": "c"}, {0: "a"}, {0: "a", 1: "b", 5: "c"}, ["a", "b", "c"], None]
)
def test_classes_without_a_name_each_are_refused(
    tmp_path: Path, network: DetectionModel, names: Any
) -> None:
    changed = deepcopy(network)
    changed.names = names
    path = tmp_path / "unnamed.pt"
    torch.save({"model": changed}, path)
    with pytest.raises(ModelUnsupported, match="head has 3 classes, its names are"):
        load_checkpoint(path)


@pytest.mark.parametrize("unknown", [False, True])
def test_any_damage_is_told_as_an_error_of_ours(tmp_path: Path, unknown: bool) -> None:
    """Single bits of the pickle changed: refused, or still a model, and never another error."""
    whole = saved({"model": small_network(nn.Linear(3, 5))}, tmp_path / "whole.pt")
    if unknown:
        names = {"torch.nn.modules.linear.Linear": "my_fork.Odd"}
        whole = renamed(whole, names, tmp_path / "fork.pt")
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (program,) = (name for name in members if name.endswith("data.pkl"))
    path = tmp_path / "damaged.pt"
    rng = random.Random(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(members[program])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, bytes(damaged) if name == program else data)
        with suppress(CheckpointRefused, ModelUnsupported):
            load_checkpoint(path)
            continue
        refused += 1
    assert refused > 0


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, repo_dir: Path) -> None:
    whole = (repo_dir / "weights" / "yolov8n-fla-bccd.pt").read_bytes()
    path = tmp_path / "half.pt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointRefused, match="not a complete checkpoint"):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"nothing\.pt: No such file"):
        load_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointRefused, match="Is a directory"):
        load_checkpoint(tmp_path)


def test_images_and_archives_are_called_what_they_are(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("labels/a.txt", "0 0.5 0.5 1 1")
    scripted = io.BytesIO()
    with zipfile.ZipFile(scripted, "w") as file:
        file.writestr("model/constants.pkl", b"")
    files = {
        pickle.dumps(Calls(os.system, "true")): "damaged, or saved with another pickle protocol",
        b"not a checkpoint": "damaged",
        b"\xff\xd8\xff\xe0 and so on": "this is a JPEG image",
        b"\x89PNG\r\n": "this is a PNG image",
        b"version https://git-lfs.github.com/spec/v1": "this is a Git LFS pointer",
        b"": "the file is empty",
        archive.getvalue(): "this is a zip archive with no checkpoint in it",
        archive.getvalue()[:-10]: "the file is cut off",
        scripted.getvalue(): "this is TorchScript",
    }
    path = tmp_path / "model.pt"
    for content, said in files.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointRefused, match=f"not a complete checkpoint: {said}") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_another_pickle_protocol_is_named(tmp_path: Path, network: DetectionModel) -> None:
    path = tmp_path / "protocol.pt"
    torch.save({"model": network}, path, pickle_protocol=4)
    with pytest.raises(CheckpointRefused, match=r"another pickle protocol than torch\.save's own"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    path = saved({"epoch": 3, "layer": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ModelUnsupported, match="this holds dict"):
        load_checkpoint(path)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
def test_a_file_of_parameters_says_what_it_needs(
    tmp_path: Path, network: DetectionModel, key: str | None
) -> None:
    state = network.state_dict()
    path = saved({key: state, "epoch": 3} if key else state, tmp_path / "state.pth")
    with pytest.raises(ModelUnsupported, match=r"parameters only, .* --arch"):
        load_checkpoint(path)


def test_a_model_saved_by_itself_is_taken(tmp_path: Path) -> None:
    assert load_checkpoint(saved(small_network(), tmp_path / "bare.pt")).class_names == ("a", "b")


def test_figures_paths_and_a_loss_beside_the_network_are_passed_over(tmp_path: Path) -> None:
    """As ultralytics leaves them: in the notes, and in a run that did not come to its end."""
    network = small_network()
    network.args = get_cfg()
    network.criterion = network.init_criterion()
    content = {
        "model": None,
        "ema": network,
        "best_fitness": np.float64(0.5),
        "train_args": {"data": Path("data.yaml")},
        "train_metrics": {"metrics/mAP50(B)": np.float64(0.5), "epoch": np.int64(3)},
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1).state_dict(),
    }
    model = load_checkpoint(saved(content, tmp_path / "last.pt")).model
    assert not hasattr(model, "criterion")


def test_a_first_layer_of_other_than_three_channels_is_named(tmp_path: Path) -> None:
    path = saved({"model": small_network(channels=4)}, tmp_path / "thermal.pt")
    with pytest.raises(ModelUnsupported, match="first layer takes 4 channels, images have 3"):
        load_checkpoint(path)


def test_a_head_with_an_end_to_end_branch_is_named(tmp_path: Path) -> None:
    register()
    network = DetectionModel(small_network().yaml | {"end2end": True}, verbose=False)
    network.end2end = True
    path = saved({"model": network}, tmp_path / "end2end.pt")
    with pytest.raises(ModelUnsupported, match="chooses its own detections"):
        load_checkpoint(path)


@pytest.mark.parametrize("stride", [0.0, -8.0, 1e9, float("nan")])
def test_strides_that_are_none_are_refused(tmp_path: Path, stride: float) -> None:
    """A network is tried at a size that follows from its strides."""
    network = small_network()
    network.model[-1].stride = torch.tensor([4.0, stride])
    with pytest.raises(ModelUnsupported, match="its strides are"):
        load_checkpoint(saved({"model": network}, tmp_path / "strides.pt"))


def test_a_checkpoint_predicts_what_ultralytics_gives(tmp_path: Path) -> None:
    network = small_network().eval()
    checkpoint = load_checkpoint(saved({"model": network}, tmp_path / "plain.pt"))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(x)[0][0].numpy()
    output = checkpoint.predict(x.numpy())
    assert output.dtype == np.float32
    assert output.shape == (4 + 2, 2 * 16 * 24)
    np.testing.assert_array_equal(output, expected)
    assert checkpoint.strides == (4, 4)
    assert checkpoint.fixed_hw is None


@pytest.mark.parametrize("static", [False, True])
def test_its_graph_has_an_artifacts_input_and_output(tmp_path: Path, static: bool) -> None:
    checkpoint = load_checkpoint(saved({"model": small_network()}, tmp_path / "plain.pt"))
    graph = checkpoint.graph((64, 96), static=static)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == (["batch", 64, 96, 3] if static else ["batch", "height", "width", 3])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    ((candidates,),) = session.run(["candidates"], {"images": pixels})
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    predictions = checkpoint.predict(x)
    np.testing.assert_allclose(
        candidates[:, 4], np.sort(predictions[4:].max(0))[::-1][: len(candidates)], atol=1e-5
    )


def test_the_default_checkpoint_is_described(repo_dir: Path) -> None:
    checkpoint = load_checkpoint(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    assert checkpoint.architecture == "yolov8n-fla"
    assert checkpoint.class_names == ("RBC", "WBC", "Platelets")
    assert all(p.dtype == torch.float32 for p in checkpoint.model.parameters())
    assert not checkpoint.model.training
