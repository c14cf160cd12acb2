import json
from pathlib import Path

import pytest

from benchmarks.micro.precision import main
from tests.support.artifacts import tiny_artifact


def test_a_row_for_each_artifact_against_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tiny_artifact(tmp_path / f"{name}.onnx") for name in ("a", "b")]
    out = tmp_path / "figures.json"
    main(
        [*map(str, paths), "--threads", "1", "--rounds", "2", "--repeats", "1", "--json", str(out)]
    )
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[-2:]] == ["a.onnx", "b.onnx"]
    figures = json.loads(out.read_text())
    assert figures["machine"]["input_hw"] == [64, 64]
    first, second = figures["artifacts"]
    assert (first["lowest"], first["highest"]) == (1, 1)
    assert second["lowest"] <= second["times_as_fast"] <= second["highest"]
    assert second["file_bytes"] == paths[1].stat().st_size


@pytest.mark.parametrize(
    ("bucket", "said"), [("32x32", "has no bucket 32x32; it has 64x64"), ("64", "HEIGHTxWIDTH")]
)
def test_a_shape_that_an_artifact_has_not_is_said(tmp_path: Path, bucket: str, said: str) -> None:
    path = tiny_artifact(tmp_path / "a.onnx")
    with pytest.raises(SystemExit, match=said):
        main([str(path), "--bucket", bucket])
