import pytest
from pydantic import ValidationError

from server.errors import SettingsInvalid
from server.settings import Settings, variable_name

OTHER_VALUES = {
    "model": "other.onnx",
    "device": "cuda:1",
    "host": "0.0.0.0",
    "port": "9000",
    "max_batch_size": "3",
    "max_queue_delay_s": "0.5",
    "max_queue_images": "77",
    "max_body_bytes": "1000",
    "max_image_pixels": "2000",
    "max_request_pixels": "60000000",
    "max_images_per_request": "5",
    "request_timeout_s": "1.5",
    "drain_timeout_s": "2.5",
    "precision": "int8",
    "max_inflight_body_bytes": "100000000",
    "jpeg_dct_scaling": "False",
    "header_timeout_s": "3.5",
    "inference_watchdog_s": "4.5",
    "api_keys": "one, two",
    "api_keys_file": "keys.txt",
    "cors_origins": "https://a.example, https://b.example",
    "otlp_endpoint": "http://127.0.0.1:4318",
    "log_format": "console",
    "decode_threads": "2",
    "intra_op_threads": "4",
    "http_workers": "4",
    "cuda_graphs": "True",
    "tensorrt_cache": "engines",
}
OUT_OF_BOUNDS = [
    ("device", "gpu"),
    ("device", "cuda:x"),
    ("host", ""),
    ("port", "65536"),
    ("port", "-1"),
    ("port", "http"),
    ("max_batch_size", "0"),
    ("max_queue_delay_s", "-0.1"),
    ("max_queue_delay_s", "nan"),
    ("max_queue_images", "0"),
    ("max_body_bytes", "0"),
    ("max_image_pixels", "0"),
    ("max_request_pixels", "0"),
    ("max_images_per_request", "0"),
    ("precision", "fp64"),
    ("max_inflight_body_bytes", "0"),
    ("jpeg_dct_scaling", "maybe"),
    ("header_timeout_s", "0"),
    ("inference_watchdog_s", "inf"),
    ("request_timeout_s", "0"),
    ("request_timeout_s", "inf"),
    ("drain_timeout_s", "-1"),
    ("log_format", "xml"),
    ("decode_threads", "0"),
    ("intra_op_threads", "0"),
]


def plain(settings: Settings, name: str) -> str:
    if name == "api_keys":
        return ", ".join(key.get_secret_value() for key in settings.api_keys)
    if name == "cors_origins":
        return ", ".join(settings.cors_origins)
    return str(getattr(settings, name))


def test_every_field_of_the_design_exists() -> None:
    assert set(Settings.model_fields) == set(OTHER_VALUES)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_field_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(Settings.load([]), name) != OTHER_VALUES[name]
    monkeypatch.setenv(variable_name(name), OTHER_VALUES[name])
    assert plain(Settings.load([]), name) == OTHER_VALUES[name]


@pytest.mark.parametrize("name", OTHER_VALUES)
@pytest.mark.parametrize("spelling", ["--{}", "--{}="])
def test_every_field_is_read_from_its_flag(name: str, spelling: str) -> None:
    for word in (name, name.replace("_", "-")):
        flag = spelling.format(word)
        given = [flag + OTHER_VALUES[name]] if "=" in flag else [flag, OTHER_VALUES[name]]
        assert plain(Settings.load(given), name) == OTHER_VALUES[name]


@pytest.mark.parametrize("device", ["cpu", "tensorrt"])
def test_cuda_graphs_without_cuda_are_refused(device: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"cuda_graphs is .* device is {device}"):
        Settings.load(["--cuda-graphs=true", f"--device={device}"])


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_FLA_PORT", "1")
    assert Settings.load(["--port", "2"]).port == 2


@pytest.mark.parametrize(("name", "value"), OUT_OF_BOUNDS)
def test_a_value_out_of_bounds_is_refused_in_one_line_that_names_its_source(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsInvalid) as from_flag:
        Settings.load([f"--{name}={value}"])
    assert str(from_flag.value).startswith("--" + name.replace("_", "-"))
    monkeypatch.setenv(variable_name(name), value)
    with pytest.raises(SettingsInvalid) as from_variable:
        Settings.load([])
    assert str(from_variable.value).startswith(variable_name(name))
    assert "\n" not in str(from_variable.value)


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsInvalid, match=r"^--device: must be auto, cpu, cuda, cuda:N"):
        Settings.load(["--device=gpu"])


@pytest.mark.parametrize("variable", ["YOLO_FLA_PROT", "yolo_fla_prot"])
def test_an_unknown_variable_is_refused_with_the_nearest_name(variable: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{variable}; did you mean YOLO_FLA_PORT"):
        Settings.load([], {variable: "1", "PATH": "/bin"})


@pytest.mark.parametrize("flag", ["--prot", "--por", "port"])
def test_an_unknown_flag_is_refused(flag: str) -> None:
    with pytest.raises(SettingsInvalid, match=flag):
        Settings.load([flag, "1"])


def test_several_faults_are_all_named() -> None:
    with pytest.raises(SettingsInvalid, match=r"--port.*; --device.*|--device.*; --port.*"):
        Settings.load(["--port=x", "--device=x"])


def test_a_request_must_fit_into_the_queue() -> None:
    with pytest.raises(SettingsInvalid, match=r"max_images_per_request \(9\).*\(8\)"):
        Settings.load(["--max-images-per-request=9", "--max-queue-images=8"])
    assert "may wait" in str(Settings.model_fields["max_images_per_request"].description)


def test_keys_are_never_shown() -> None:
    settings = Settings.load(["--api-keys=secret-one,secret-two"])
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings.model_dump())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings.load([]).port = 1


def test_every_field_has_one_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    "given",
    [
        {"max_images_per_request": "9", "max_queue_images": "8"},
        {"max_body_bytes": "1001", "max_inflight_body_bytes": "1000"},
        {"max_image_pixels": "1001", "max_request_pixels": "1000"},
    ],
)
def test_a_request_that_could_never_be_taken_is_refused_at_the_start(given: dict[str, str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with pytest.raises(SettingsInvalid, match="could never be taken"):
        Settings.load(flags, {})
