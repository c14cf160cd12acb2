"""Inputs of the GPU benchmark that are made in a moment: the tiny artifact and a block to match."""

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.gpu.manifest import BlockFile, write_manifest
from benchmarks.gpu.parity import detections, write_found
from server.inference.artifact import load_artifact
from server.inference.session import Session
from tests.support.artifacts import paint, tiny_artifact

TOKENS, CHANNELS = 16, 4


def tiny_inputs(folder: Path) -> Path:
    """Writes a folder of inputs: `fla` and `plain` in two precisions, blocks, three images."""
    folder.mkdir(parents=True)
    models = {}
    for network in ("fla", "plain"):
        for precision in ("fp32", "fp16"):
            name = f"{network}-{precision}"
            tiny_artifact(folder / f"{name}.onnx", name=name, precision=precision)
            models[name] = f"{name}.onnx"
    blocks = []
    for form in ("ours", "published"):
        block = BlockFile(f"block-{form}.onnx", form, "fp32", 1, TOKENS, CHANNELS)
        _block(folder / block.file, again=form == "published")
        blocks.append(block)
    images = []
    for i, hw in enumerate(((64, 64), (64, 64), (32, 64))):
        image = paint(hw, {(0, 0): (255, 0, 0), (0, 1): (200, 90, 8 * i)})
        bgr = np.ascontiguousarray(image[..., ::-1])
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        (folder / f"{i}.jpg").write_bytes(cv2.imencode(".jpg", bgr, quality)[1].tobytes())
        images.append(f"{i}.jpg")
    artifact = load_artifact(folder / models["fla-fp32"])
    session = Session.open(artifact, device="cpu", threads=1)
    encoded = [(folder / each).read_bytes() for each in images]
    write_found(detections(session, artifact, encoded), folder / "expected.npz")
    session.close()
    write_manifest(
        folder,
        models=models,
        blocks=blocks,
        images=images,
        expected="expected.npz",
        about={"weights": "none: made for tests"},
    )
    return folder


def _block(path: Path, *, again: bool) -> None:
    shape = [1, CHANNELS, int(TOKENS**0.5), int(TOKENS**0.5)]
    nodes = [helper.make_node("Relu", ["x"], ["a"])]
    nodes += [helper.make_node("Sqrt" if again else "Identity", ["a"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
