import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from server.observability.logs import configure_logging, get_logger


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged as JSON; logging is afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_each_line_says_which_of_several_processes_wrote_it(stream: io.StringIO) -> None:
    configure_logging("json", stream, process="http-1")
    get_logger("server.test").info("mine")
    logging.getLogger("uvicorn.error").warning("theirs")
    assert [json.loads(line)["process"] for line in stream.getvalue().splitlines()] == [
        "http-1",
        "http-1",
    ]


def test_a_json_line_carries_the_request_id_whoever_wrote_it(stream: io.StringIO) -> None:
    with bound_contextvars(request_id="r-1"):
        get_logger("server.test").info("mine", images=3)
        logging.getLogger("uvicorn.error").warning("theirs %d", 7)
    mine, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (mine["event"], mine["images"], mine["level"]) == ("mine", 3, "info")
    assert (mine["logger"], "source" in mine) == ("server.test", False)
    assert (theirs["event"], theirs["level"], theirs["logger"]) == (
        "theirs 7",
        "warning",
        "uvicorn.error",
    )
    assert mine["request_id"] == theirs["request_id"] == "r-1"
    assert mine["timestamp"].endswith("Z")


def test_a_traceback_stays_in_its_line_and_shows_no_local_variables(stream: io.StringIO) -> None:
    hidden = "a-key"
    try:
        raise ValueError("broken" if hidden else "")
    except ValueError:
        get_logger("server.test").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]
    assert "a-key" not in line


def test_a_line_break_from_outside_makes_no_second_line(stream: io.StringIO) -> None:
    get_logger("server.test").info("request", path="/a\n{}")
    assert len(stream.getvalue().splitlines()) == 1


def test_console_lines_are_for_people(stream: io.StringIO) -> None:
    configure_logging("console", stream)
    get_logger("server.test").info("mine", images=3)
    assert "mine" in stream.getvalue()
    assert "images=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("path", ["/\x1b[2J", "/\x9b2J", "/a\nb", "/\u202e"])
def test_what_steers_a_terminal_is_spelled_out(stream: io.StringIO, path: str) -> None:
    configure_logging("console", stream)
    get_logger("server.test").info("request", path=path)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()


def test_debug_lines_are_left_out(stream: io.StringIO) -> None:
    get_logger("server.test").debug("quiet")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("value", [10**30, "\ud800", b"bytes", {1, 2}, object()])
def test_a_line_is_written_whatever_its_values(stream: io.StringIO, value: object) -> None:
    get_logger("server.test").info("odd", value=value)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "odd"
