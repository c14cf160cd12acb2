"""Makes what the GPU benchmark reads, where torch and ultralytics are: models, blocks, images.

    python -m benchmarks.gpu.inputs -o FOLDER

Writes FOLDER and beside it FOLDER.tar.xz, which `benchmarks.gpu` takes as it is. The network with
attention is the shipped checkpoint; the one without has the same weights in all layers that both
have, so that both are trained ones and their difference is the attention. It finds nothing useful,
which its time does not show.
"""

import argparse
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from benchmarks.gpu.manifest import BlockFile, write_manifest
from model.environment import contain_ultralytics
from samples.render import render_smear, write_jpeg
from server.version import this_build

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "weights" / "yolov8n-fla-bccd.pt"
IMGSZ = 640
MIB = 2**20
# Photographs' shapes, (height, width), and how many of each beside the samples.
SHAPES = {(480, 640): 5, (720, 1280): 4, (1080, 1920): 3, (1440, 1080): 2, (640, 640): 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the folder and the archive; returns the exit code."""
    chosen = parser().parse_args(argv)
    contain_ultralytics()  # before what imports it
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    output: Path = chosen.output
    if output.exists():
        print(f"benchmarks.gpu.inputs: {output} is there already", file=sys.stderr)
        return 2
    with TemporaryDirectory(dir=output.absolute().parent) as draft:
        folder = Path(draft) / output.name
        make(folder, chosen.checkpoint, chosen.imgsz, int8=chosen.int8)
        archive = pack(folder)
        size = archive.stat().st_size / MIB
        print(f"{sum(each.stat().st_size for each in folder.rglob('*')) / MIB:.1f} MiB of files")
        print(f"{size:.1f} MiB as {output.name}.tar.xz")
        if size > chosen.max_mib:
            print(f"benchmarks.gpu.inputs: more than {chosen.max_mib} MiB", file=sys.stderr)
            return 1
        shutil.move(archive, output.absolute().parent / archive.name)
        shutil.move(folder, output)
    return 0


def make(folder: Path, checkpoint: Path, imgsz: int, *, int8: bool) -> None:
    """Fills a new folder with all inputs and their manifest."""
    from benchmarks.gpu.block_files import write_blocks

    images = write_images(folder / "images")
    models = write_models(folder, checkpoint, imgsz, int8=int8)
    blocks: list[BlockFile] = []
    weights: dict[str, None] = {}
    for block, weight in write_blocks(folder):
        blocks.append(block)
        weights[weight] = None
    print(f"{len(blocks)} blocks", flush=True)
    encoded = [(folder / each).read_bytes() for each in images]
    write_expected(folder, models["fla-fp32"], encoded)
    write_manifest(
        folder,
        models=models,
        images=images,
        blocks=blocks,
        others=list(weights),
        expected="expected.npz",
        about=about(checkpoint, imgsz),
    )


def write_models(folder: Path, checkpoint: Path, imgsz: int, *, int8: bool) -> dict[str, str]:
    """Exports both networks in each precision, with the same exporter; their files by name."""
    from export.pipeline import Request, export
    from export.sources.source import Origin

    plain = folder / "plain.pt"
    names = without_attention(checkpoint, plain)
    origins = {"fla": Origin(checkpoint), "plain": Origin(plain, arch="yolov8n", names=names)}
    files = {}
    for network, origin in origins.items():
        precisions = ("fp32", "fp16", "int8") if int8 and network == "fla" else ("fp32", "fp16")
        for precision in precisions:
            name = f"{network}-{precision}"
            print(name, flush=True)
            request = Request(
                origin,
                folder / f"{name}.onnx",
                imgsz=imgsz,
                precision=precision,  # type: ignore[arg-type]  # one of these words
                data=folder / "images",
                calibration=folder / "images" if precision == "int8" else None,
                accept_loss=True,  # there are no labels to tell; accuracy is not what is measured
            )
            export(request)
            files[name] = f"{name}.onnx"
    plain.unlink()
    return files


def without_attention(checkpoint: Path, output: Path) -> tuple[str, ...]:
    """Writes the parameters of a YOLOv8n that has a checkpoint's layers but its attention.

    Args:
        checkpoint: of a yolov8n-fla.
        output: the file of parameters.

    Returns:
        The names of its classes.
    """
    import torch

    from export.sources.checkpoint import load_checkpoint
    from model.attention.focused_linear import FLABlock

    source = load_checkpoint(checkpoint)
    layers: Any = source.model.model
    kept = [i for i, layer in enumerate(layers) if not isinstance(layer, FLABlock)]
    assert len(kept) == len(layers) - 1, "one attention is expected"
    state = {
        f"model.{new}.{name}": value
        for new, old in enumerate(kept)
        for name, value in layers[old].state_dict().items()
    }
    torch.save(state, output)
    return source.class_names


def write_images(folder: Path) -> list[str]:
    """Samples and more smears in shapes of photographs, with the grain of a camera.

    Returns:
        Their names below the folder's parent, shapes mixed, so that the first few have all.
    """
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    by_shape: list[list[str]] = []
    for number, ((height, width), count) in enumerate(SHAPES.items()):
        by_shape.append([])
        for i in range(count):
            seed = 1000 * number + i
            # Drawn at half the size: drawing is slow, and a camera's pixels are not sharper.
            image, _ = render_smear(seed, (height // 2, width // 2))
            large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
            grain = chance.normal(0, 4.0, large.shape)
            name = f"{height}x{width}-{i}.jpg"
            write_jpeg(folder / name, np.clip(large + grain, 0, 255).round().astype(np.uint8))
            by_shape[-1].append(f"images/{name}")
    for sample in sorted((ROOT / "samples").glob("*.jpg")):
        shutil.copy(sample, folder / sample.name)
        by_shape[0].append(f"images/{sample.name}")
    most = max(map(len, by_shape))
    return [names[i] for i in range(most) for names in by_shape if i < len(names)]


def write_expected(folder: Path, model: str, images: Sequence[bytes]) -> None:
    """What the float32 model finds on a CPU."""
    from benchmarks.gpu.parity import detections, write_found
    from server.inference.artifact import load_artifact
    from server.inference.session import Session

    artifact = load_artifact(folder / model)
    session = Session.open(artifact, device="cpu")
    write_found(detections(session, artifact, images), folder / "expected.npz")
    session.close()


def about(checkpoint: Path, imgsz: int) -> dict[str, Any]:
    """How the inputs were made."""
    import onnxruntime
    import torch
    import ultralytics

    return {
        "checkpoint": checkpoint.name,
        "imgsz": imgsz,
        "server": str(this_build()),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def pack(folder: Path) -> Path:
    """FOLDER.tar.xz beside the folder; the same files give the same bytes."""
    archive = folder.with_name(f"{folder.name}.tar.xz")

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False, filter=plain)
    return archive


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.inputs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("-o", "--output", type=Path, required=True, help="a folder that is not there")
    root.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="of a yolov8n-fla")
    root.add_argument("--imgsz", type=int, default=IMGSZ, help=f"default {IMGSZ}")
    root.add_argument("--int8", action="store_true", help="an int8 model too, for TensorRT")
    root.add_argument("--max-mib", type=float, default=40, help="of the archive; default 40")
    return root


if __name__ == "__main__":
    sys.exit(main())
