"""The page's own suppression against the server's, at many thresholds."""

from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.vision.palette import class_colour, text_colour
from tests.browser.conftest import Open
from tests.support.artifacts import tiny_artifact
from tests.support.processes import ServerProcess, ready
from tests.support.serving import encode

pytestmark = pytest.mark.slow
CONFS = (0.01, 0.25, 0.6)
IOUS = (0.0, 0.1, 0.45, 0.7, 1.0)
HERE = """async ([result, all]) => {
  const {candidatesOf, detectionsOf, isTruncated, suppress} = await import("./page/suppression.js");
  const classNames = new Map(result.detections.map((each) => [each.class_id, each.class_name]));
  const candidates = candidatesOf(result);
  const image = {candidates, classNames, width: result.width, height: result.height};
  return all.map((given) => {
    const thresholds = {...given, hidden: new Set(given.hidden)};
    return {
      truncated: isTruncated(candidates, thresholds),
      detections: detectionsOf(image, suppress(candidates, thresholds)),
    };
  });
}"""


def asked(client: httpx.Client, image: bytes, **parameters: Any) -> dict[str, Any]:
    answer = client.post("/detect", content=image, params=parameters)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["results"][0])


def candidates(client: httpx.Client, image: bytes) -> dict[str, Any]:
    return asked(client, image, conf=0.01, iou=1, max_det=999_999_999, clip=False)


def test_the_page_decides_as_the_server_does(
    open_page: Open,
    url: str,
    server: tuple[ServerProcess, httpx.Client],
    samples: list[Path],
) -> None:
    visit = open_page(url)
    thresholds: list[dict[str, Any]] = [
        {"conf": conf, "iou": iou, "maxDet": most, "agnostic": agnostic, "hidden": hidden}
        for conf, iou in product(CONFS, IOUS)
        for most, agnostic, hidden in [(300, False, []), (300, True, []), (7, False, [0])]
    ]
    compared = 0
    for image in (sample.read_bytes() for sample in samples):
        here = visit.page.evaluate(HERE, [candidates(server[1], image), thresholds])
        for given, found in zip(thresholds, here, strict=True):
            wanted = [each for each in range(3) if each not in given["hidden"]]
            there = asked(
                server[1],
                image,
                conf=given["conf"],
                iou=given["iou"],
                max_det=given["maxDet"],
                agnostic_nms=given["agnostic"],
                classes=",".join(map(str, wanted)),
            )
            assert found["truncated"] == there["truncated"], given
            assert len(found["detections"]) == len(there["detections"]), given
            for mine, its in zip(found["detections"], there["detections"], strict=True):
                assert (mine["class_name"], mine["score"]) == (its["class_name"], its["score"])
                # Rounded once more than the server's.
                difference = np.subtract(list(mine["box"].values()), list(its["box"].values()))
                assert np.abs(difference).max() < 0.011
                compared += 1
    assert compared > 1000


def test_a_list_that_the_model_cut_off_is_told(
    open_page: Open, repo_dir: Path, tmp_path: Path
) -> None:
    artifact = tiny_artifact(tmp_path / "two.onnx", max_candidates=2)
    image = np.full((64, 64, 3), (200, 0, 0), np.uint8)  # four cells of one score, 0.567
    with ready(repo_dir, artifact) as (_, client):
        visit = open_page(str(client.base_url))
        visit.pick({"name": "a.png", "mimeType": "image/png", "buffer": encode(image)})
        visit.done(1)
        assert visit.found() == 2
        for conf in (0.25, 0.56, 0.57, 0.9):
            visit.set_number("conf-number", conf)
            truncated = asked(client, encode(image), conf=conf)["truncated"]
            assert visit.page.locator("#truncated").is_visible() == truncated, conf
            assert truncated == (conf < 0.567)


def test_classes_have_the_colours_of_annotated_images(open_page: Open, url: str) -> None:
    colours, texts = open_page(url).page.evaluate(
        """async () => {
          const {classRgb, textColour} = await import("./page/palette.js");
          const ids = Array.from({length: 200}, (_, id) => id);
          return [ids.map(classRgb), ids.map(textColour)];
        }"""
    )
    for class_id, (rgb, text) in enumerate(zip(colours, texts, strict=True)):
        expected = class_colour(class_id)
        assert np.abs(np.subtract(rgb, expected)).max() <= 1, class_id
        assert text == {(0, 0, 0): "#000", (255, 255, 255): "#fff"}[text_colour(expected)]
    assert len({tuple(rgb) for rgb in colours}) == 200
