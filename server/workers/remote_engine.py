"""What a worker knows of the model, which is loaded in another process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.inference.artifact import Artifact, Metadata
from server.serving.interface import LoadedModel


@dataclass(frozen=True, eq=False)
class RemoteEngine:
    """A `server.serving.interface.LoadedModel`.

    The engine process keeps the model while this is referred to.

    Attributes:
        generation: 1 for the first model, and one more after each reload.
    """

    generation: int
    artifact: Artifact
    reason: str
    provider: str
    device: str
    cpu_fallback: str | None
    instances: int
    max_batch_size: int


_FIELDS = ("reason", "provider", "device", "cpu_fallback", "instances", "max_batch_size")


def described(generation: int, engine: LoadedModel) -> dict[str, Any]:
    """A loaded model as JSON values."""
    artifact = engine.artifact
    return {name: getattr(engine, name) for name in _FIELDS} | {
        "generation": generation,
        "path": str(artifact.path),
        "version": artifact.version,
        "metadata": artifact.metadata.model_dump(mode="json"),
    }


def read_description(values: dict[str, Any]) -> RemoteEngine:
    """The model that `described` described."""
    metadata = Metadata.model_validate(values["metadata"])
    return RemoteEngine(
        generation=values["generation"],
        artifact=Artifact(Path(values["path"]), metadata, values["version"]),
        **{name: values[name] for name in _FIELDS},
    )
