"""The application, for `serve deploy deploy/ray/serve.yaml` and `python -m server.ray.serve`."""

from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from server.errors import SettingsInvalid
from server.ray.serve.replica import Replica
from server.settings import Settings

NAME = "detector"
# Settings that Serve's proxies have of their own, and where.
PROXYS = {
    "host": "http_options: {host: …}",
    "port": "http_options: {port: …}",
    "header_timeout_s": "nothing: Ray Serve has no such bound",
}
# Requests to a replica beside those that wait in its queue: at the model, or being read.
UNDER_WAY = 32
# Requests that may wait in a proxy while every replica has all it takes.
MAX_QUEUED_REQUESTS = 64
HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S = 2.0, 10.0
# After the last answer that a replica may still owe.
GRACE_S = 2.0


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file.

    Args:
        args: settings by name; those left out come from the environment, then the defaults, as
            with `python -m server`.

    Raises:
        SettingsInvalid: one is unknown, out of range, or not a setting that holds behind Ray.
    """
    for name, instead in PROXYS.items():
        if name in args:
            raise SettingsInvalid(f"{name} is of no effect under Ray Serve; instead: {instead}")
    flags = [f"--{name}={_text(value)}" for name, value in args.items()]
    return bound(Settings.load(flags))


def bound(settings: Settings, **options: Any) -> serve.Application:
    """The deployment with options that fit its settings, which others may override.

    A replica takes as many requests as its own queue and a few more: so batches form, and it is
    the replica who refuses what is too much, with the time to come back.
    """
    chosen: dict[str, Any] = {
        "name": NAME,
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 1},
        "max_ongoing_requests": settings.max_queue_images + UNDER_WAY,
        "max_queued_requests": MAX_QUEUED_REQUESTS,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=1),
        # Every accepted request ends by itself in this time.
        "graceful_shutdown_timeout_s": settings.request_timeout_s + GRACE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "logging_config": {"enable_access_log": False},  # ours tells more
        # What a constructor refuses, it refuses again.
        "max_constructor_retry_count": 2,
    } | options
    deployment: Any = serve.deployment(Replica)
    application: serve.Application = deployment.options(**chosen).bind(settings)
    return application


def _text(value: object) -> str:
    """A value of YAML as a flag would say it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
