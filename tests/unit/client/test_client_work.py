import json
from pathlib import Path

import httpx
import pytest
from yolov8_fla_client import AsyncClient
from yolov8_fla_client.parameters import Parameters
from yolov8_fla_client.progress import Silent
from yolov8_fla_client.work import Images, Job, ModelChanged, run

from tests.support.flaky import found_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images."""
    found = tmp_path / "all" / "images"
    found.mkdir(parents=True)
    for number in (1, 2, 3):
        (found / f"{number}.jpg").write_bytes(b"image %d" % number)
    return found


def reloaded(request: httpx.Request) -> httpx.Response:
    """A server that gets another model before the second image."""
    if request.url.path == "/model":
        metadata = {"name": "m", "class_names": ["RBC"]}
        return httpx.Response(200, json={"version": "v", "metadata": metadata})
    answer = found_in([request.content])
    if request.content != b"image 1":
        answer["model"] = {"name": "m", "version": "w"}
    return httpx.Response(200, json=answer)


@pytest.mark.parametrize("form", ["jsonl", "coco", "yolo"])
async def test_results_of_another_model_do_not_come_into_one_file(folder: Path, form: str) -> None:
    out = folder.parent / "out"
    job = Job([folder], out, form, Parameters(), images_per_request=1)
    images = Images([folder], all_files=False, out=out)
    async with AsyncClient("http://x", transport=httpx.MockTransport(reloaded)) as client:
        with pytest.raises(ModelChanged, match=r"2\.jpg: .* version w; this run began with v"):
            await run(job, client, images, Silent())
    if form == "jsonl":
        lines = (folder.parent / "out.partial").read_text().splitlines()
        assert [json.loads(line)["filename"] for line in lines] == ["1.jpg"]


def test_what_is_written_is_no_image_whatever_files_are_asked_for(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "out.partial", "other"):
        (folder / name).touch()
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    monkeypatch.chdir(folder)
    for out in (folder / "out", linked / "out", Path("out")):
        names = [each.name for each in Images([folder], all_files=True, out=out)]
        assert names == ["1.jpg", "2.jpg", "3.jpg", "other"]
    assert Images([Path()], all_files=True, out=Path()).count() == 6
