"""Fixtures of the app in process and of real processes."""

from tests.support.fixtures import anyio_backend, artifact, plain_tracebacks

__all__ = ["anyio_backend", "artifact", "plain_tracebacks"]
