"""Tensors of the Open Inference Protocol v2, as JSON or as binary data behind the JSON.

A request's numbers are compared with what really came before anything is made of them, so that
a lie about a shape or a length costs nothing.

Source:
    KServe, Open Inference Protocol, "Tensor Data" and "Binary Tensor Data Extension".
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.api.base64_text import read_base64
from server.api.parameters import truncate_repr
from server.errors import MalformedRequest

Datatype = Literal["BYTES", "FP32", "INT64", "UINT8"]
NUMBERS: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
}
LENGTH = struct.Struct("<I")  # in front of each element of binary BYTES


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a model takes or answers.

    Attributes:
        name: of the tensor.
        datatype: of its elements.
        shape: -1 where any size is taken.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor as it came, its shape and its content not yet compared.

    Attributes:
        name, datatype: as the request says.
        shape: of any length, its sizes from 0 to 2**64 - 1.
        content: the list under `data`, or the bytes behind the JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: list[Any] | memoryview


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to answer.

    Attributes:
        spec: its name and datatype.
        values: an array of the datatype's dtype and any shape; texts for BYTES, of shape [N].
    """

    spec: TensorSpec
    values: NDArray[Any] | Sequence[str]

    def described(self) -> dict[str, Any]:
        """The tensor's JSON object without its content."""
        values = self.values
        shape = values.shape if isinstance(values, np.ndarray) else (len(values),)
        return {"name": self.spec.name, "datatype": self.spec.datatype, "shape": list(shape)}

    def as_json(self) -> NDArray[Any] | list[str]:
        """What stands under `data`: all elements in one row.

        Raises:
            ValueError: one is infinite or no number, which JSON does not have.
        """
        values = self.values
        if not isinstance(values, np.ndarray):
            return list(values)
        if not np.isfinite(values).all():
            raise ValueError(f"output {self.spec.name!r} has elements that are no numbers")
        return values.reshape(-1)

    def as_binary(self) -> bytes:
        """Little-endian, row by row; each text with its length in front."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(NUMBERS[self.spec.datatype], copy=False).tobytes()
        texts = [text.encode() for text in self.values]
        return b"".join(chain.from_iterable((LENGTH.pack(len(text)), text) for text in texts))


def check_against(tensor: InputTensor, spec: TensorSpec) -> None:
    """Compares what a request says of a tensor with what the model takes.

    Raises:
        MalformedRequest: another name, datatype or shape.
    """
    if tensor.name != spec.name:
        raise MalformedRequest(
            f"unknown input {truncate_repr(tensor.name)}; the model takes {spec.name!r}"
        )
    if tensor.datatype != spec.datatype:
        raise MalformedRequest(
            f"input {spec.name!r} is {truncate_repr(tensor.datatype)}; "
            f"the model takes {spec.datatype}"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        size in (-1, came) for size, came in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise MalformedRequest(
            f"input {spec.name!r} has the shape {shape_text(tensor.shape)}; the model takes "
            f"{shape_text(spec.shape)}, where -1 is any size"
        )


def read_files(tensor: InputTensor) -> list[bytes]:
    """The elements of a BYTES tensor of shape [N]; in JSON they are base64.

    Raises:
        MalformedRequest: there are not N elements, or one can't be read.
    """
    (count,) = tensor.shape
    if isinstance(tensor.content, memoryview):
        return _split(tensor.content, count, tensor.name)
    if len(tensor.content) != count:
        raise MalformedRequest(
            f"input {tensor.name!r} has {len(tensor.content)} elements under data; "
            f"its shape says {count}"
        )
    return [
        read_base64(text, f"element {index} of input {tensor.name!r}")
        for index, text in enumerate(tensor.content)
    ]


def read_pixels(tensor: InputTensor) -> NDArray[np.uint8]:
    """A UINT8 tensor; in JSON flat, or nested as its shape.

    Returns:
        An array of the tensor's shape; read-only, of the request's own memory where it can be.

    Raises:
        MalformedRequest: there are more or less elements than the shape says, or others than
            integers from 0 to 255.
    """
    elements = math.prod(tensor.shape)
    if isinstance(tensor.content, memoryview):
        came, pixels = len(tensor.content), tensor.content
    else:
        flat = _flat(tensor.content, tensor.shape, tensor.name)
        # bytes() takes what has __index__, which true and false have, too.
        if not set(map(type, flat)) <= {int}:
            raise MalformedRequest(f"input {tensor.name!r} has elements that are not integers")
        try:
            came, pixels = len(flat), memoryview(bytes(flat))
        except ValueError:
            raise MalformedRequest(
                f"input {tensor.name!r} has elements that are not from 0 to 255"
            ) from None
    if came != elements:
        raise MalformedRequest(
            f"input {tensor.name!r} has {came} elements; its shape {shape_text(tensor.shape)} "
            f"says {elements}"
        )
    try:
        return np.frombuffer(pixels, np.uint8).reshape(tensor.shape)
    except ValueError:  # no elements, because one size is 0, and the others too large for an array
        raise MalformedRequest(
            f"input {tensor.name!r} has an impossible shape {shape_text(tensor.shape)}"
        ) from None


def shape_text(shape: Sequence[int]) -> str:
    """A shape for a message, cut where a request made it long."""
    return f"[{', '.join(map(str, shape[:8]))}{', ...' if len(shape) > 8 else ''}]"


def _split(content: memoryview, count: int, name: str) -> list[bytes]:
    elements = []
    position = 0
    for index in range(count):
        if len(content) - position < LENGTH.size:
            raise MalformedRequest(
                f"input {name!r} ends before its element {index}; its shape says {count}"
            )
        (length,) = LENGTH.unpack_from(content, position)
        position += LENGTH.size
        if length > len(content) - position:
            raise MalformedRequest(
                f"element {index} of input {name!r} says it has {length} bytes; "
                f"{len(content) - position} are left"
            )
        elements.append(bytes(content[position : position + length]))
        position += length
    if position != len(content):
        raise MalformedRequest(
            f"{len(content) - position} bytes follow the {count} elements of input {name!r}"
        )
    return elements


def _flat(values: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """One row of the elements that stand nested as `shape`, or in one row already."""
    if not values or not isinstance(values[0], list):
        return values
    nested = len(values) == shape[0]
    for size in shape[1:]:
        nested = nested and all(isinstance(row, list) and len(row) == size for row in values)
        if not nested:
            break
        values = list(chain.from_iterable(values))
    if nested:
        return values
    raise MalformedRequest(
        f"the lists under data of input {name!r} are not nested as its shape {shape_text(shape)}"
    )
