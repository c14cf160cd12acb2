"""The Serve application without a cluster: its settings and options, and errors of the proxies."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("ray", reason="needs the extra `ray`")
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

with warnings.catch_warnings():
    # Of Ray 2.60's own models; it comes once, from the import.
    warnings.filterwarnings("ignore", message="Using extra keyword arguments on `Field`")
    from ray.serve.schema import ServeDeploySchema
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from server.errors import DeploymentError, SettingsInvalid
from server.ray.serve.__main__ import main, parser, refuse_without_room
from server.ray.serve.all_replicas import merged
from server.ray.serve.application import application, bound
from server.ray.serve.proxy import OurErrors, middlewares
from server.ray.serve.replica import refuse_without_gpu
from server.settings import Settings

pytestmark = pytest.mark.anyio


def deployment_of(built: Any) -> Any:
    return built._bound_deployment


def test_the_arguments_of_a_serve_config_are_the_settings() -> None:
    built = application({"max_queue_images": 70, "jpeg_dct_scaling": False, "device": "cpu"})
    (settings,) = deployment_of(built).init_args
    assert isinstance(settings, Settings)
    assert (settings.max_queue_images, settings.jpeg_dct_scaling) == (70, False)


def test_lists_of_a_serve_config_are_lists() -> None:
    built = application({"api_keys": ["one", "two"]})
    (settings,) = deployment_of(built).init_args
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_batch_size": 0}, "--max-batch-size: Input should be greater than or equal to 1"),
        ({"confidence": 0.5}, "unrecognized arguments: --confidence=0.5"),
        ({"port": 80}, "port is of no effect under Ray Serve; instead: http_options: {port: …}"),
        ({"header_timeout_s": 5}, "Ray Serve has no such bound"),
    ],
)
def test_arguments_that_can_not_hold_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        application(args)
    assert message in str(caught.value)


def test_a_replica_takes_more_requests_than_its_queue_so_that_it_is_the_one_to_refuse() -> None:
    settings = Settings.model_validate({"max_queue_images": 200, "request_timeout_s": 7})
    deployment = deployment_of(bound(settings))
    assert deployment.max_ongoing_requests > 200
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 7
    assert deployment._deployment_config.max_queued_requests > 0


def test_the_config_in_the_repository_is_one_of_ray_serve_and_of_ours(repo_dir: Path) -> None:
    written = yaml.safe_load((repo_dir / "deploy" / "ray" / "serve.yaml").read_text())
    config = ServeDeploySchema.model_validate(written)
    (app,) = config.applications
    assert app.import_path == "server.ray.serve.application:application"
    deployment = deployment_of(application(app.args))
    (options,) = app.deployments
    assert options.name == deployment.name
    scaling = options.autoscaling_config
    assert isinstance(scaling, dict)
    assert scaling["target_ongoing_requests"] < Settings.model_fields["max_queue_images"].default
    (settings,) = deployment.init_args
    assert config.http_options.request_timeout_s is not None
    assert config.http_options.request_timeout_s > settings.request_timeout_s


def test_a_device_that_ray_does_not_give_is_refused() -> None:
    for fine in (("auto", 0.0), ("cpu", 0.0), ("cuda", 0.5), ("tensorrt", 1.0)):
        refuse_without_gpu(*fine)
    with pytest.raises(SettingsInvalid, match="the replica has no GPU of Ray's"):
        refuse_without_gpu("cuda", 0.0)
    with pytest.raises(SettingsInvalid, match="Ray chooses the GPU"):
        refuse_without_gpu("cuda:1", 1.0)


def exposition(value: int) -> str:
    registry = CollectorRegistry()
    counter = Counter("detector_requests", "Answered.", ["route"], registry=registry)
    counter.labels('/a"b\\c').inc(value)
    Gauge("detector_queue_images", "Waiting.", registry=registry).set(value)
    Histogram("detector_stage_seconds", "Took.", buckets=(1, 2), registry=registry).observe(value)
    return generate_latest(registry).decode()


def test_metrics_of_all_replicas_are_one_text_with_the_name_of_each() -> None:
    text = merged([("one", exposition(1)), ("two", exposition(2))]).decode()
    lines = [line for line in text.splitlines() if "_created" not in line]
    assert lines.count("# TYPE detector_requests_total counter") == 1
    assert lines.count("# TYPE detector_stage_seconds histogram") == 1
    for name, value in (("one", 1.0), ("two", 2.0)):
        route = r'route="/a\"b\\c"'
        assert f'detector_requests_total{{replica="{name}",{route}}} {value}' in lines
        assert f'detector_queue_images{{replica="{name}"}} {value}' in lines
        assert f'detector_stage_seconds_sum{{replica="{name}"}} {value}' in lines
    # All samples of a metric follow its type, or Prometheus refuses the text.
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)


def answered_by(kind: Response) -> OurErrors:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind.headers["x-request-id"] = dict(scope["headers"])[b"x-request-id"].decode()
        await kind(scope, receive, send)
        assert len([each for each in scope["headers"] if each[0] == b"x-request-id"]) == 1

    return OurErrors(app)


async def ask(
    app: OurErrors, path: str = "/detect", headers: Sequence[tuple[str, str]] = ()
) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers=list(headers))


async def test_serves_own_refusal_becomes_a_problem_with_a_time_to_come_back() -> None:
    (middleware,) = middlewares()
    text = PlainTextResponse("Request dropped due to backpressure", 503, {"retry-after": "3"})
    assert str(middleware).startswith("Middleware(OurErrors")
    answer = await ask(answered_by(text), headers=[("X-Request-ID", "mine")])
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "3"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.json()["code"] == "unavailable"
    assert answer.json()["request_id"] == "mine"


async def test_a_traceback_of_serve_is_not_told_to_clients() -> None:
    answer = await ask(answered_by(PlainTextResponse("Traceback: secret", 500)))
    assert answer.json()["code"] == "internal_server_error"
    assert "secret" not in answer.text


async def test_the_other_apis_get_errors_in_their_form() -> None:
    app = answered_by(PlainTextResponse("no", 503))
    assert set((await ask(app, "/v2/models/m/infer")).json()) == {"error"}
    assert (await ask(app, "/v1/vision/detection")).json()["success"] is False


async def test_answers_of_the_replicas_and_of_serves_health_pass_as_they_are() -> None:
    ours = Response(json.dumps({"code": "queue_full"}), 503, media_type="application/problem+json")
    assert (await ask(answered_by(ours))).json() == {"code": "queue_full"}
    assert (await ask(answered_by(PlainTextResponse("all good")))).text == "all good"

    async def unhealthy(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("UNHEALTHY", 503)(scope, receive, send)

    assert (await ask(OurErrors(unhealthy), "/-/healthz")).text == "UNHEALTHY"


async def test_a_request_id_that_could_do_harm_is_replaced_by_one_for_all() -> None:
    answer = await ask(
        answered_by(PlainTextResponse("no", 404)), headers=[("X-Request-ID", "a b;c")]
    )
    (told,) = answer.headers.get_list("x-request-id")
    assert told == answer.json()["request_id"] != "a b;c"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-batch-size", "0"], "error: --max-batch-size: Input should be greater than"),
        (["--device", "cuda"], "error: device is cuda, and the replica has no GPU of Ray's"),
        (["--replicas", "3", "--max-replicas", "2"], "error: --max-replicas is less than"),
        (["--replicas", "0"], "error: num_replicas is expected to larger than 0"),
        (["--replicas", "-1"], "error: num_replicas: Input should be greater than or equal to 0"),
        (["--cpus-per-replica", "-1"], "error: The quantity of resource num_cpus cannot be neg"),
        (["--model", "nowhere.onnx"], "error: nowhere.onnx: cannot be read"),
        (["--address", "127.0.0.1:1"], "error: the Ray cluster at 127.0.0.1:1 can't be reached"),
        (["--address", "ray://127.0.0.1:1"], "error: ray://127.0.0.1:1: run this on a node"),
    ],
)
def test_what_can_not_be_served_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_replicas_that_a_machine_has_no_room_for_are_refused_and_not_waited_for() -> None:
    options = parser().parse_args(["--replicas", "3", "--cpus-per-replica", "0.5"])
    refuse_without_room(options, {"CPU": 2.0})
    with pytest.raises(DeploymentError, match=r"3 replicas of 0\.5 CPUs each need more than .* 1"):
        refuse_without_room(options, {"CPU": 1.0})
    options = parser().parse_args(["--gpus-per-replica", "1"])
    with pytest.raises(DeploymentError, match="1 GPUs each need more than this machine's 0"):
        refuse_without_room(options, {"CPU": 1.0})
