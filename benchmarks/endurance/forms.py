"""Every way in which a client may send images, with a check of what comes back."""

import base64
import json
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.endurance.corpus import (
    DEEPSTACK_CONF,
    DEFAULT_CONF,
    LEAST_CONF,
    Bounds,
    Expected,
    Image,
)
from benchmarks.endurance.shots import Check, Shot, loaded
from benchmarks.load.http_client import Answer

DETECT, INFER, DEEPSTACK = "/detect", "/v2/models/{name}/infer", "/v1/vision/detection"
BOUNDARY = "a-boundary-that-no-image-holds"


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that is no image that can be read, and the code of its error."""

    name: str
    data: bytes
    code: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a form; without a file name it is a field."""

    name: str
    filename: str | None
    data: bytes


def multipart(parts: Sequence[Part]) -> tuple[bytes, dict[str, str]]:
    """A form's body and headers."""
    pieces = []
    for part in parts:
        file = f'; filename="{part.filename}"' if part.filename is not None else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{part.name}"{file}\r\n\r\n'
        pieces += [head.encode(), part.data, b"\r\n"]
    body = b"".join([*pieces, f"--{BOUNDARY}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def raw(image: Image, expected: Expected, conf: float = DEFAULT_CONF) -> Shot:
    """One image as the body."""
    path = DETECT if conf == DEFAULT_CONF else f"{DETECT}?conf={conf}"
    check = results_check([(image, expected[image.name, conf])])
    headers = {"Content-Type": image.media_type}
    kind = "raw" if conf == DEFAULT_CONF else "many boxes"
    return Shot(kind, DETECT, path, image.data, headers, {"ok": 1}, check=check)


def many_boxes(image: Image, expected: Expected) -> Shot:
    """One image with all that the model suspects in it."""
    return raw(image, expected, LEAST_CONF)


def form(files: Sequence[Image | BadFile], expected: Expected) -> Shot:
    """Several images in a form; at least one of them can be read."""
    body, headers = multipart([Part("image", each.name, each.data) for each in files])
    images = Counter(each.code if isinstance(each, BadFile) else "ok" for each in files)
    check = results_check([_with_bounds(each, expected) for each in files], named=True)
    return Shot("form", DETECT, DETECT, body, headers, images, check=check)


def document(files: Sequence[Image | BadFile], expected: Expected) -> Shot:
    """Several images as base64 in JSON; at least one of them can be read."""
    texts = [base64.b64encode(each.data).decode() for each in files]
    images = Counter(each.code if isinstance(each, BadFile) else "ok" for each in files)
    check = results_check([_with_bounds(each, expected) for each in files])
    headers = {"Content-Type": "application/json"}
    return Shot(
        "json", DETECT, DETECT, json.dumps({"images": texts}).encode(), headers, images, check=check
    )


def annotated(image: Image) -> Shot:
    """An image back."""

    def check(answer: Answer) -> str | None:
        is_jpeg = answer.headers.get("content-type") == "image/jpeg"
        whole = answer.body.startswith(b"\xff\xd8\xff") and answer.body.endswith(b"\xff\xd9")
        return None if is_jpeg and whole else f"annotated: no JPEG of {image.name}"

    headers = {"Content-Type": image.media_type}
    path = f"{DETECT}?format=image"
    return Shot("annotated", DETECT, path, image.data, headers, {"ok": 1}, check=check)


def infer(model: str, images: Sequence[Image], expected: Expected, *, binary: bool) -> Shot:
    """Image files in the Open Inference Protocol; the answer as JSON."""
    tensor: dict[str, object] = {"name": "image", "datatype": "BYTES", "shape": [len(images)]}
    headers = {"Content-Type": "application/json"}
    if binary:
        blob = b"".join(struct.pack("<I", len(each.data)) + each.data for each in images)
        tensor["parameters"] = {"binary_data_size": len(blob)}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }
        body = head + blob
    else:
        tensor["data"] = [base64.b64encode(each.data).decode() for each in images]
        body = json.dumps({"inputs": [tensor]}).encode()
    bounds = [expected[each.name, DEFAULT_CONF] for each in images]

    def check(answer: Answer) -> str | None:
        answered = loaded(answer) or {}
        tensors = {each["name"]: each for each in answered.get("outputs", [])}
        counts = tensors.get("counts", {}).get("data", [])
        if len(counts) != len(bounds):
            return f"infer: {len(counts)} counts for {len(bounds)} images"
        off = [f"{c} boxes" for c, b in zip(counts, bounds, strict=True) if not b.hold(c)]
        return f"infer: {off[0]}" if off else None

    kind = "infer, binary" if binary else "infer, JSON"
    return Shot(
        kind, INFER, f"/v2/models/{model}/infer", body, headers, {"ok": len(images)}, check=check
    )


def deepstack(image: Image, expected: Expected) -> Shot:
    """One image in the form of camera software."""
    body, headers = multipart([Part("image", image.name, image.data)])
    bounds = expected[image.name, DEEPSTACK_CONF]

    def check(answer: Answer) -> str | None:
        found = loaded(answer) or {}
        count = len(found.get("predictions", []))
        right = found.get("success") is True and bounds.hold(count)
        return None if right else f"deepstack: {count} boxes in {image.name}, expected {bounds}"

    return Shot("deepstack", DEEPSTACK, DEEPSTACK, body, headers, {"ok": 1}, check=check)


def results_check(files: Sequence[tuple[Image, Bounds] | BadFile], *, named: bool = False) -> Check:
    """One result for each file, in their order, with its size and number of boxes, or its error."""

    def check(answer: Answer) -> str | None:
        results = (loaded(answer) or {}).get("results", [])
        if len(results) != len(files):
            return f"{len(results)} results for {len(files)} images"
        for i, (file, result) in enumerate(zip(files, results, strict=True)):
            name = file.name if isinstance(file, BadFile) else file[0].name
            if wrong := _wrong_result(file, result):
                return f"image {i}, {name}: {wrong}"
            if named and result["filename"] != name:
                return f"image {i}, {name}: the result is of {result['filename']}"
        return None

    return check


def _wrong_result(file: tuple[Image, Bounds] | BadFile, result: dict[str, object]) -> str | None:
    error, boxes = result["error"], result["detections"]
    assert isinstance(boxes, list)
    if isinstance(file, BadFile):
        assert isinstance(error, dict | None)
        code = error and error["code"]
        return None if code == file.code and not boxes else f"error {code}, not {file.code}"
    image, bounds = file
    if error is not None:
        return f"error {error}"
    if (result["height"], result["width"]) != image.hw:
        return f"{result['width']} x {result['height']} pixels"
    if not bounds.hold(len(boxes)):
        return f"{len(boxes)} boxes, expected {bounds.least} to {bounds.most}"
    return None


def _with_bounds(file: Image | BadFile, expected: Expected) -> tuple[Image, Bounds] | BadFile:
    return file if isinstance(file, BadFile) else (file, expected[file.name, DEFAULT_CONF])
