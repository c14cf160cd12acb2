"""`python -m server.ray.serve`: the server on Ray Serve, with the flags of `python -m server`."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from server.ray import RAY_MISSING, ray_is_there

if not ray_is_there():
    print(RAY_MISSING, file=sys.stderr)
    sys.exit(2)
# Before Ray is loaded, which reads them then: no usage statistics, and errors in our form.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "server.ray.serve.proxy:middlewares"
)
# uvicorn's, in Serve's proxies: no `X-Forwarded-For` is believed, as by `python -m server`.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")

import ray
from pydantic import ValidationError
from ray import serve

from server.errors import DeploymentError
from server.inference.repository import load_model
from server.observability.logs import configure_logging, get_logger
from server.ray.connection import OWN_RAY, address_of, connected
from server.ray.serve.application import NAME, bound
from server.ray.serve.replica import refuse_without_gpu
from server.settings import Settings

EXIT_DEPLOYMENT = 2
# The replicas end every request in time; this much later the proxy does, for one that can't.
PROXY_GRACE_S = 10.0

logger = get_logger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        parser().print_help()
        print("\nand the settings of the server:\n")
        Settings.load(["--help"])
    options, flags = parser().parse_known_args(arguments)
    try:
        settings = Settings.load(flags)
        deployment = deployment_options(options)
        refuse_without_gpu(settings.device, options.gpus_per_replica)
        try:
            application = bound(settings, **deployment)
        except ValueError as error:
            raise DeploymentError(in_one_line(error)) from None
        own_ray = address_of(options.address) == OWN_RAY
        if own_ray:  # else it is the nodes that have to have it
            load_model(settings.model)
        with connected(options.address):
            try:
                if own_ray:  # which gets no other nodes, so that Serve would wait for ever
                    refuse_without_room(options, ray.cluster_resources())
                serve_until_signal(settings, application, deployment)
            finally:
                if own_ray:
                    serve.shutdown()
                else:  # where there may be other applications
                    serve.delete(NAME)
        return 0
    except DeploymentError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DEPLOYMENT


def serve_until_signal(
    settings: Settings, application: serve.Application, deployment: dict[str, Any]
) -> None:
    """Deploys, and waits.

    Args:
        settings: of the server.
        application: to deploy.
        deployment: its options, for the log.

    Raises:
        DeploymentError: the replicas can't start.
    """
    configure_logging(settings.log_format)
    ended = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: ended.set())
    try:
        timeout_s = settings.request_timeout_s + PROXY_GRACE_S
        http = {"host": settings.host, "port": settings.port, "request_timeout_s": timeout_s}
        serve.start(http_options=http)
        serve.run(application, name=NAME, route_prefix="/")
        logger.info("listening", url=f"http://{settings.host}:{settings.port}", **deployment)
        ended.wait()
    except (RuntimeError, ValueError) as error:
        raise DeploymentError(why_not(str(error))) from None


def why_not(message: str) -> str:
    """The last line of a traceback that Serve hands on, which is the replica's own error."""
    status: Any = serve.status()
    application = status.applications.get(NAME)
    messages = [each.message for each in application.deployments.values()] if application else []
    lines = [line.strip() for line in "\n".join([message, *messages]).splitlines()]
    ours = [line for line in lines if line.startswith("server.errors.")]
    return (ours or lines)[-1].partition("server.errors.")[2] or message


def in_one_line(error: ValueError) -> str:
    """What Serve has against an option; pydantic takes four lines for it."""
    if isinstance(error, ValidationError):
        (first, *_) = error.errors(include_url=False)
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def refuse_without_room(options: argparse.Namespace, there: Mapping[str, float]) -> None:
    """Raises `DeploymentError` where the replicas need more than a Ray of one's own has.

    Args:
        options: of the command line.
        there: what Ray has, by the kind of resource.
    """
    for kind, each in (("CPU", options.cpus_per_replica), ("GPU", options.gpus_per_replica)):
        if each * options.replicas > there.get(kind, 0):
            raise DeploymentError(
                f"{options.replicas} replicas of {each:g} {kind}s each need more than this "
                f"machine's {there.get(kind, 0):g}"
            )


def deployment_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of replicas.

    Raises:
        DeploymentError: they contradict each other.
    """
    chosen: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": options.cpus_per_replica,
            "num_gpus": options.gpus_per_replica,
        }
    }
    if options.max_replicas is None:
        return chosen | {"num_replicas": options.replicas}
    if options.max_replicas < options.replicas:
        raise DeploymentError("--max-replicas is less than --replicas")
    autoscaling = {
        "min_replicas": options.replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.target_ongoing_requests,
    }
    return chosen | {"num_replicas": None, "autoscaling_config": autoscaling}


def parser() -> argparse.ArgumentParser:
    """The flags beside the server's."""
    program = argparse.ArgumentParser(
        prog="python -m server.ray.serve",
        description="Serves detections over HTTP, in replicas on a Ray cluster.",
        allow_abbrev=False,
        add_help=False,
    )
    add = program.add_argument
    add("--address", help="of a Ray cluster, or auto; else Ray is started on this machine")
    add("--replicas", type=int, default=1, help="models that run, or the least of them [1]")
    add("--max-replicas", type=int, help="scale up to so many under load")
    add(
        "--target-ongoing-requests",
        type=float,
        default=16,
        help="requests of each replica that scaling aims at [16]",
    )
    add("--cpus-per-replica", type=float, default=1, help="[1]")
    add("--gpus-per-replica", type=float, default=0, help="such as 0.5 [0]")
    return program


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
