"""Structured logs: one line an event, and every line of a request carries its request id."""

import json
import logging
import sys
from functools import partial
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from server.observability.log_output import LogOutput


def configure_logging(
    log_format: Literal["json", "console"],
    stream: TextIO | LogOutput | None = None,
    *,
    process: str | None = None,
) -> None:
    """Sends our own and all libraries' log lines through the same steps, in one form.

    Ours don't go through Python's `logging`: a line then costs a third.

    Args:
        log_format: "json" for machines, "console" for people.
        stream: where lines go; standard error by default.
        process: which of several this is; every line says it.
    """
    stream = stream or sys.stderr
    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if process is not None:
        steps.append(partial(_of_process, process))
    render: list[Processor] = (
        # Not dict_tracebacks: it prints local variables, and those hold whole images and keys.
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
        if log_format == "json"
        else [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    structlog.configure(
        processors=[_name, *steps, *render],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, stream)),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *steps],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger for one module; `configure_logging` decides how and where its lines appear."""
    logger: FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


def _name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """As lines of Python's `logging` call it; structlog keeps the word for itself until here."""
    event["logger"] = event.pop("source", None)
    return event


def _of_process(process: str, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**event, "process": process}


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What a client sent must not steer the terminal."""
    return {
        name: ascii(value) if isinstance(value, str) and not value.isprintable() else value
        for name, value in event.items()
    }


def _json(event: dict[str, Any], **kwargs: Any) -> str:
    try:
        return orjson.dumps(event, **kwargs).decode()
    except TypeError:  # a huge integer or a broken text: a line must not be lost for that
        return json.dumps(event, **kwargs)
