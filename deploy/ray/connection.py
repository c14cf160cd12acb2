"""The way to a Ray cluster, or to a Ray of one's own."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from server.errors import DeploymentError

# Of a Ray that is started here: images don't pass through its object store.
OBJECT_STORE_BYTES = 128 * 2**20
# Nobody else needs to reach it. Not 127.0.0.1: Ray takes that for the machine's public address.
LOOPBACK = "127.0.0.2"
CONNECT_S = 10.0
OWN_RAY = "local"


class ClusterUnreachable(DeploymentError):
    """No Ray cluster answers at the address."""


def address_of(asked: str | None) -> str:
    """Of the cluster to use: the one asked for, or of Ray's own variable, or `OWN_RAY`."""
    return asked or os.environ.get("RAY_ADDRESS") or OWN_RAY


def refuse_unreachable(address: str) -> None:
    """Raises `ClusterUnreachable` where nobody answers; Ray itself would try for minutes."""
    if "://" in address:
        raise ClusterUnreachable(
            f"{address}: run this on a node of the cluster, with --address auto"
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # local, or auto: what Ray finds on this machine
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterUnreachable(
            f"the Ray cluster at {address} can't be reached: {error}"
        ) from None


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, or Ray on this machine for as long as the block runs.

    Raises:
        ClusterUnreachable: the cluster can't be reached.
    """
    address = address_of(address)
    refuse_unreachable(address)
    try:
        if address == OWN_RAY:
            ray.init(
                address=OWN_RAY,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
            )
        else:
            ray.init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise ClusterUnreachable(
            f"the Ray cluster at {address} can't be reached: {first_line}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
