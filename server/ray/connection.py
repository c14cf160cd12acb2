"""The way to a Ray cluster, or to a Ray of one's own."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from server.errors import DeploymentError

# Of a Ray that is started here: images don't pass through its object store.
OBJECT_STORE_BYTES = 128 * 2**20
# Nobody else needs to reach it. Only at this address does Ray listen to loopback alone.
LOOPBACK = "127.0.0.1"
# Without it Ray takes that address for the machine's own one in the network, and listens there.
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
CONNECT_S = 10.0
OWN_RAY = "local"


class ClusterUnreachable(DeploymentError):
    """No Ray cluster answers at the address."""


def address_of(address: str | None) -> str:
    """Of the cluster to use: the one asked for, or of Ray's own variable, or `OWN_RAY`."""
    return address or os.environ.get("RAY_ADDRESS") or OWN_RAY


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

    A handler of SIGTERM that was set before stays; to be called in the main thread.

    Raises:
        ClusterUnreachable: the cluster can't be reached, or Ray does not start.
    """
    address = address_of(address)
    refuse_unreachable(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address == OWN_RAY:
            os.environ[CLUSTERS] = "0"  # for the processes that Ray starts
            ray_constants.ENABLE_RAY_CLUSTER = False  # what it was read into when Ray was loaded
            ray.init(
                address=OWN_RAY,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
            )
        else:
            ray.init(address=address)
    except Exception as error:  # also bare ones, as when a machine is too busy to start it in time
        first_line = str(error).partition("\n")[0]
        own = address == OWN_RAY
        what = "Ray can't start" if own else f"the Ray cluster at {address} can't be reached"
        raise ClusterUnreachable(f"{what}: {first_line}") from None
    try:
        if callable(on_sigterm):  # Ray has put its own in its place
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()
