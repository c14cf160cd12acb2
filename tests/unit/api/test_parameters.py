import pytest

from server.api.parameters import NAMES, RequestParameters, read_parameters
from server.errors import InvalidParameter
from server.vision.nms import DetectParameters

CLASS_NAMES = ("RBC", "WBC", "Platelets", "cell, other")


def read(*given: tuple[str, object]) -> RequestParameters:
    return read_parameters(given, CLASS_NAMES)


def test_without_parameters_the_defaults_hold() -> None:
    assert read() == RequestParameters(DetectParameters(), "json")
    assert read(*((name, None) for name in NAMES)) == read()


@pytest.mark.parametrize("as_text", [True, False])
def test_text_and_json_values_mean_the_same(as_text: bool) -> None:
    values = {"conf": 0.5, "iou": 0.25, "max_det": 7}
    given: list[tuple[str, object]] = [(n, str(v) if as_text else v) for n, v in values.items()]
    given.append(("agnostic_nms", "true" if as_text else True))
    given.append(("format", "image"))
    given.append(("clip", "false" if as_text else False))
    expected = DetectParameters(conf=0.5, iou=0.25, max_det=7, agnostic_nms=True, clip=False)
    assert read(*given) == RequestParameters(expected, "image")


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (["1"], (1,)),
        (["WBC"], (1,)),
        (["RBC,2"], (0, 2)),
        ([" RBC , WBC "], (0, 1)),
        (["WBC", "0"], (1, 0)),
        ([["WBC", 0]], (1, 0)),
        ([2], (2,)),
        (["cell, other"], (3,)),
        (["1,1", "WBC"], (1,)),
        ([[]], ()),
    ],
)
def test_classes_are_ids_or_names(values: list[object], ids: tuple[int, ...]) -> None:
    assert read(*(("classes", value) for value in values)).detect.classes == ids


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)]
)
def test_false_is_false(text: str, value: bool) -> None:
    assert read(("agnostic_nms", text)).detect.agnostic_nms is value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conf", ""),
        ("conf", "high"),
        ("conf", "nan"),
        ("conf", float("nan")),
        ("conf", "inf"),
        ("conf", "1_0"),
        ("conf", " 0.5"),
        ("conf", True),
        ("conf", [0.5]),
        ("conf", "1.01"),
        ("conf", -0.01),
        ("conf", int("9" * 400)),
        ("iou", "1.5"),
        ("iou", {}),
        ("max_det", "0"),
        ("max_det", "1.5"),
        ("max_det", 1.5),
        ("max_det", True),
        ("max_det", "-1"),
        ("max_det", "٣"),
        ("agnostic_nms", "yes"),
        ("agnostic_nms", ""),
        ("agnostic_nms", 1),
        ("format", "xml"),
        ("format", 1),
        ("classes", "4"),
        ("classes", "-1"),
        ("classes", "rbc"),
        ("classes", ""),
        ("classes", [True]),
        ("classes", {"RBC": 1}),
        ("classes", 1.0),
        ("classes", [0] * 5),
        ("classes", "0,0,0,0,0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter, match=name):
        read((name, value))


@pytest.mark.parametrize("name", NAMES)
def test_an_endless_text_is_not_even_read(name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{name} has over 65536 characters"):
        read((name, "1" * 65_537))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidParameter, match=r"'confidence'; known are conf, iou"):
        read(("confidence", "0.5"))


def test_a_repeated_parameter_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="conf is given more than once"):
        read(("conf", "0.5"), ("conf", "0.6"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conf", "x" * 10_000),
        ("conf", [0] * 10_000),
        ("conf", {"x": [0] * 10_000}),
        ("classes", [10**4000]),
        ("x" * 10_000, 1),
    ],
    ids=["text", "list", "object", "integer", "name"],
)
def test_what_is_long_is_not_repeated_in_full(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read((name, value))
    assert len(str(refused.value)) < 200
