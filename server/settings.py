"""All settings of the server: environment `YOLO_FLA_*`, or flags of `python -m server`."""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.errors import SettingsInvalid
from server.inference.repository import DEFAULT_MODEL
from server.version import this_build

ENV_PREFIX = "YOLO_FLA_"
DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,3}|tensorrt")


class Settings(BaseSettings):
    """What the person who runs the server may choose; read once, at start, and never changed."""

    # hide_input_in_errors: an error about `api_keys` must not print a key into the log.
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    model: Path = Field(
        DEFAULT_MODEL,
        description="The artifact (ONNX file), or a folder of one model in several precisions.",
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto",
        description="Which file of the folder: auto (the best for the device), fp32, fp16 or int8.",
    )
    device: str = Field(
        "auto",
        description="Where the model runs: auto, cpu, cuda, cuda:N or tensorrt.",
    )
    cuda_graphs: bool = Field(
        False,
        description="On a CUDA GPU: a session for each input shape, replayed as one CUDA graph; "
        "not measured yet.",
    )
    tensorrt_cache: Path | None = Field(
        None,
        description="Folder for what TensorRT builds, in minutes; unset: in the user's cache, "
        "where that can be written.",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 is all of IPv4, :: all of IPv6 and IPv4.",
    )
    port: int = Field(
        8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one."
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Images in one inference at most; unset: 8 on a GPU, 1 on a CPU.",
    )
    max_queue_delay_s: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Seconds that an image waits for others though the model is idle.",
    )
    max_queue_images: int = Field(
        96, ge=1, le=100_000, description="Images that may wait; past it requests get a 503."
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1, le=2**31 - 1, description="Bytes of one request's body at most."
    )
    max_inflight_body_bytes: int | None = Field(
        None,
        ge=1,
        le=2**40,
        description="Bytes of all bodies in memory at once; past it requests get a 503. "
        "Unset: 256 MiB, or an eighth of the memory where that is less.",
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**30, description="Pixels (width x height) of one image at most."
    )
    max_request_pixels: int = Field(
        200_000_000,
        ge=1,
        le=2**40,
        description="Pixels of all images of one request at most; not under those of one image.",
    )
    max_images_per_request: int = Field(
        64,
        ge=1,
        le=1000,
        description="Images in one request at most; not over the images that may wait.",
    )
    jpeg_dct_scaling: bool = Field(
        True,
        description="Decode JPEGs of over twice the input size at reduced scale: true or false.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that a request's headers may take to arrive.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds from the end of a request's headers to its response; past it a 504.",
    )
    drain_timeout_s: float = Field(
        20.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that accepted requests have to finish after SIGTERM.",
    )
    inference_watchdog_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that one inference may take; past it `/health/live` fails.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated keys; all but health, metrics and pages require one.",
    )
    api_keys_file: Path | None = Field(
        None, description="A regular file of more keys, one a line, read again at a reload."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins whose pages may call this server; `*` for all."
    )
    otlp_endpoint: str | None = Field(
        None, description="Where OpenTelemetry traces go (OTLP over HTTP); needs the extra `otel`."
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="Log lines as JSON, or as text for people: json or console."
    )
    decode_threads: int | None = Field(
        None, ge=1, le=256, description="Threads that decode images; unset: one per CPU."
    )
    intra_op_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Threads of an inference; unset: all CPUs for a sole one, 1 where several run.",
    )

    http_workers: int = Field(
        1,
        ge=1,
        le=64,
        description="HTTP workers, which also decode images, in front of the engine process.",
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        items = tuple(item.strip() for item in value.split(",") if item.strip())
        if value.strip() and not items:
            raise ValueError("holds nothing but commas; leave it out, or empty")
        return items

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        # Not Field(pattern=...): its message would show the pattern.
        if not DEVICE.fullmatch(value):
            raise ValueError("must be auto, cpu, cuda, cuda:N or tensorrt")
        return value

    @model_validator(mode="after")
    def _graphs_need_cuda(self) -> Self:
        if self.cuda_graphs and self.device in ("cpu", "tensorrt"):
            raise ValueError(f"cuda_graphs is for the CUDA provider; device is {self.device}")
        return self

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_images_per_request > self.max_queue_images:
            raise ValueError(
                f"max_images_per_request ({self.max_images_per_request}) must not be over "
                f"max_queue_images ({self.max_queue_images}): such a request could never be taken"
            )
        if self.max_image_pixels > self.max_request_pixels:
            raise ValueError(
                f"max_image_pixels ({self.max_image_pixels}) must not be over max_request_pixels "
                f"({self.max_request_pixels}): such an image could never be taken"
            )
        if (
            self.max_inflight_body_bytes is not None
            and self.max_body_bytes > self.max_inflight_body_bytes
        ):
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) must not be over max_inflight_body_bytes "
                f"({self.max_inflight_body_bytes}): such a body could never be taken"
            )
        return self

    @classmethod
    def load(
        cls,
        arguments: Sequence[str],
        environment: Mapping[str, str] = os.environ,
        prog: str = "python -m server",
    ) -> Self:
        """Reads flags, then environment, then defaults; flags win.

        Args:
            arguments: the command line without the program's name.
            environment: only searched for unknown names; values come from the process'.
            prog: what help names the program.

        Raises:
            SettingsInvalid: an unknown flag or `YOLO_FLA_*` variable, or a value out of bounds;
                the message is one line that names each.
        """
        flags = _parse_flags(arguments, prog)
        _refuse_unknown_variables(environment)
        try:
            return cls(**flags)  # type: ignore[arg-type]  # texts: pydantic converts them
        except ValidationError as error:
            raise SettingsInvalid(_one_line(error, flags)) from None


def variable_name(field_name: str) -> str:
    """The environment variable of a field."""
    return ENV_PREFIX + field_name.upper()


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing several lines and exiting."""

    def error(self, message: str) -> NoReturn:
        raise SettingsInvalid(message)


def _parse_flags(arguments: Sequence[str], prog: str) -> dict[str, str]:
    parser = _Parser(
        prog=prog,
        description="Serves detections over HTTP.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=str(this_build()))
    for name, field in Settings.model_fields.items():
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        parser.add_argument(
            *spellings, metavar="VALUE", help=f"{field.description} [{variable_name(name)}]"
        )
    return vars(parser.parse_args(arguments))


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    # pydantic-settings reads names without regard to case and ignores the ones it doesn't know.
    known = {variable_name(name) for name in Settings.model_fields}
    for variable in sorted(environment):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            close = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsInvalid(f"unknown environment variable {variable}{hint}")


def _one_line(error: ValidationError, flags: Mapping[str, str]) -> str:
    parts = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            parts.append(message)
            continue
        name = str(detail["loc"][0])
        source = "--" + name.replace("_", "-") if name in flags else variable_name(name)
        parts.append(f"{source}: {message}")
    return "; ".join(parts).replace("\n", " ")
