"""ONNX files as ultralytics' own exporter writes them, from there to the detections."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from export.__main__ import main
from export.errors import ModelUnsupported
from export.optimize import FORBIDDEN_OPERATORS, optimize
from export.sources.checkpoint import load_checkpoint
from export.sources.onnx_graft import has_half, opset_of
from export.sources.onnx_source import OnnxSource, load_onnx
from export.verification.compare import candidate_difference
from model.attention.focused_linear import FLABlock
from model.registration import register
from server.inference.artifact import load_artifact
from server.inference.detector import Detector, prepare_image
from server.inference.session import Session
from server.vision.decode import decode
from server.vision.nms import DetectParameters

register()
pytestmark = pytest.mark.slow  # ultralytics takes seconds for each file

IMGSZ = 160
VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "dynamic": {"dynamic": True},
    "not-simplified": {"simplify": False},
    "half": {"quantize": 16},
    "dynamic-half": {"quantize": 16, "dynamic": True},
    "batch-4": {"batch": 4},
    "rectangle": {"imgsz": [96, 160]},
    "opset-12": {"opset": 12},
    "dynamic-opset-20": {"opset": 20, "dynamic": True, "simplify": False},
}

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain YOLOv8n: the default weights without their attention, which still find cells."""
    trained = load_checkpoint(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    layers = [layer for layer in trained.model.model if not isinstance(layer, FLABlock)]
    network = DetectionModel(yaml_model_load("yolov8n.yaml"), nc=3, verbose=False)
    for layer, source in zip(network.model, layers, strict=True):
        layer.load_state_dict(source.state_dict())
    network.names = dict(enumerate(trained.class_names))
    path = tmp_path_factory.mktemp("checkpoint") / "plain.pt"
    torch.save({"epoch": -1, "model": network, "train_args": {}}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Runs ultralytics' exporter, once for each set of arguments."""
    made: dict[str, Path] = {}

    def run(**arguments: Any) -> Path:
        key = repr(arguments)
        if key not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of its older exporter
                written = YOLO(checkpoint).export(
                    format="onnx", **({"imgsz": IMGSZ} | arguments), verbose=False
                )
            made[key] = tmp_path_factory.mktemp("exported") / "model.onnx"
            shutil.move(written, made[key])
        return made[key]

    return run


@pytest.fixture(scope="module")
def samples(repo_dir: Path) -> list[Path]:
    """Two images of 480x640 pixels and one of 720x1280."""
    return sorted((repo_dir / "samples").glob("smear_*.jpg"))


def check_candidates(source: OnnxSource, input_hw: tuple[int, int], samples: list[Path]) -> None:
    """The optimised graph answers batches as the file itself answers each image."""
    graph = optimize(source.graph(input_hw, static=source.fixed_hw is not None))
    assert opset_of(graph) in (17, 18)
    assert not FORBIDDEN_OPERATORS & {node.op_type for node in graph.graph.node}
    assert not has_half(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    height, width = input_hw
    decoded = [decode(path.read_bytes(), max_pixels=10**7) for path in samples]
    crops = [image[top : top + height, :width] for image in decoded for top in (0, 99, 200)]
    for count in (1, 2, 3, 8):
        images = np.stack(crops[:count])
        batch = session.run(["candidates"], {"images": images})[0]
        for rows, image in zip(batch, images, strict=True):
            x = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
            difference = candidate_difference(rows, source.predict(x))
            assert difference.boxes_px < 1e-2
            assert difference.scores < 5e-5
        assert batch[..., 4].max() > 0.25  # there is something to see


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS.keys())
def test_an_export_keeps_its_predictions(
    arguments: dict[str, Any], exported: Export, samples: list[Path]
) -> None:
    source = load_onnx(exported(**arguments))
    assert source.architecture == "yolov8n"
    assert source.class_names == ("RBC", "WBC", "Platelets")
    assert source.strides == (8, 16, 32)
    if arguments.get("dynamic"):
        assert source.fixed_hw is None
        check_candidates(source, (96, 160), samples)
        check_candidates(source, (160, 128), samples)
    else:
        assert source.fixed_hw == (tuple(arguments.get("imgsz", ())) or (IMGSZ, IMGSZ))
        check_candidates(source, source.fixed_hw, samples)


@pytest.mark.parametrize("quantize", [None, 16])
def test_predictions_are_the_checkpoint_s(
    quantize: int | None, exported: Export, checkpoint: Path, samples: list[Path]
) -> None:
    """So what an artifact is held against is what was trained."""
    source = load_onnx(exported(**({"quantize": quantize} if quantize else {})))
    image = decode(samples[0].read_bytes(), max_pixels=10**7)[:IMGSZ, :IMGSZ]
    x: NDArray[np.float32] = image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    with torch.inference_mode():
        trained = load_checkpoint(checkpoint).model(torch.from_numpy(x))[0][0].numpy()
    boxes_px, score = (1.0, 1e-2) if quantize else (1e-2, 5e-5)
    apart = np.abs(source.predict(x) - trained)
    assert apart[:4].max() < boxes_px
    assert apart[4:].max() < score


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_an_export_is_served_as_ultralytics_predicts_it(
    dynamic: bool, exported: Export, samples: list[Path], tmp_path: Path
) -> None:
    path, output = exported(imgsz=320, dynamic=dynamic), tmp_path / "served.onnx"
    size = ["--imgsz", "320"] if dynamic else []
    data = ["--data", str(samples[0].parent)]
    assert main([str(path), "-o", str(output), *size, *data]) == 0
    artifact = load_artifact(output)
    assert artifact.metadata.architecture == "yolov8n"
    assert artifact.metadata.static is not dynamic

    images = [decode(sample.read_bytes(), max_pixels=10**7) for sample in samples]
    session = Session.open(artifact, device="cpu")
    parameters = DetectParameters(conf=0.25, iou=0.7, max_det=300)
    ours = Detector(artifact, session).detect(images, parameters)
    session.close()
    predictor = YOLO(path, task="detect")
    shapes = set()
    for image, sample, found in zip(images, samples, ours, strict=True):
        (theirs,) = predictor.predict(sample, imgsz=320, conf=0.25, iou=0.7, verbose=False)
        # The same image in the same input shape, or nothing is compared.
        bucket_hw = prepare_image(image, artifact.metadata).bucket_hw
        assert letterboxed_hw(predictor.predictor, image) == bucket_hw
        shapes.add(bucket_hw)

        assert len(found.detections.scores) == len(theirs.boxes) > 3
        assert found.detections.class_ids.tolist() == theirs.boxes.cls.int().tolist()
        np.testing.assert_allclose(found.detections.boxes, theirs.boxes.xyxy.numpy(), atol=0.5)
        np.testing.assert_allclose(found.detections.scores, theirs.boxes.conf.numpy(), atol=1e-3)
    assert shapes == ({(256, 320), (192, 320)} if dynamic else {(320, 320)})


def letterboxed_hw(predictor: Any, image: NDArray[np.uint8]) -> tuple[int, int]:
    """The input shape that ultralytics gives an image."""
    (canvas,) = predictor.pre_transform([image])
    height, width = canvas.shape[:2]
    return height, width


def test_an_export_with_nms_is_refused(exported: Export) -> None:
    with pytest.raises(ModelUnsupported, match="nms=False"):
        load_onnx(exported(nms=True))
