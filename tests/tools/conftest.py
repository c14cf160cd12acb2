"""The fixtures of tests/integration, for the tools that ask a server."""

from tests.support.fixtures import anyio_backend, artifact, plain_tracebacks

__all__ = ["anyio_backend", "artifact", "plain_tracebacks"]
