"""What else the server does at its start. No secret is told."""

from collections.abc import Iterator

from server.doctor.report import Check
from server.errors import DeploymentError, SettingsInvalid
from server.host import available_cpus
from server.http.auth import Keys
from server.http.server import listen
from server.observability.tracing import open_tracing
from server.settings import Settings, variable_name

SECTION = "Settings"


def check_settings(settings: Settings) -> Iterator[Check]:
    """Keys, traces and the address."""
    changed = [
        variable_name(name)
        for name, field in Settings.model_fields.items()
        if getattr(settings, name) != field.default
    ]
    yield Check(SECTION, "not the default", "info", ", ".join(changed) or "none")
    threads = settings.decode_threads or available_cpus()
    yield Check(SECTION, "image threads", "info", str(threads))
    yield _check_keys(settings)
    yield _check_traces(settings)
    yield _check_address(settings.host, settings.port)


def _check_keys(settings: Settings) -> Check:
    try:
        keys = Keys(settings.api_keys, settings.api_keys_file)
    except SettingsInvalid as error:
        return Check(SECTION, "keys", "fail", str(error))
    if keys.configured:
        return Check(SECTION, "keys", "ok", "asked for")
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return Check(SECTION, "keys", "info", "none, and only this machine can connect")
    text = f"none, and whoever reaches {settings.host} may use the server"
    return Check(SECTION, "keys", "warn", text, ("--api-keys-file FILE, with one key a line",))


def _check_traces(settings: Settings) -> Check:
    try:
        tracing = open_tracing(settings.otlp_endpoint)
    except SettingsInvalid as error:
        return Check(SECTION, "traces", "fail", str(error))
    if tracing is None:
        return Check(SECTION, "traces", "info", "not sent")
    tracing.close()
    return Check(SECTION, "traces", "ok", "sent")


def _check_address(host: str, port: int) -> Check:
    try:
        listen(host, port).close()
    except DeploymentError as error:
        fixes = ("stop what listens there, the server itself perhaps, or take another --port",)
        return Check(SECTION, "address", "fail", str(error), fixes)
    return Check(SECTION, "address", "ok", f"{host}:{port} is free")
