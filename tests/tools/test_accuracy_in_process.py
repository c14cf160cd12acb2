import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import main
from tests.support.artifacts import tiny_artifact

SIDE = 512
# The tiny model's box of a lit cell of 32 x 32 of its 64 x 64 pixels: 2 more on each side, clipped.
LABEL = "0 0.265625 0.734375 0.53125 0.53125\n"


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    """One image of eight times the model's input, with the box that the model gives for it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    pixels = np.full((SIDE, SIDE, 3), 0, np.uint8)
    pixels[256:, :256] = (255, 100, 16)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", quality=95, subsampling=0)
    (tmp_path / "labels" / "a.txt").write_text(LABEL)
    data = tmp_path / "data.yaml"
    data.write_text("train: images\nval: images\nnames: {0: WBC, 1: elsewhere}\n")
    return data


@pytest.mark.parametrize("options", [[], ["--reduced"]], ids=["exactly", "reduced"])
def test_an_artifact_is_measured_without_a_server(
    data_yaml: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tiny_artifact(data_yaml.parent / "tiny.onnx")
    out = data_yaml.parent / "figures.json"
    main([*options, "--artifact", str(artifact), "--data", str(data_yaml), "--json", str(out)])
    assert "1 images, 1 objects" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["map50_95"] == pytest.approx(1.0)
    assert figures["reduced"] is bool(options)
