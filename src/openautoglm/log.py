"""Logging to stderr under one logger tree, `openautoglm`, text or JSON; data goes to stdout, logs never do."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

ROOT_LOGGER_NAME = "openautoglm"
LOG_FORMATS = ("text", "json")
# What lines of JSON tell of the request that a task works for: most code that logs knows nothing of requests.
request_ids: ContextVar[Mapping[str, str]] = ContextVar("request_ids")

Rewrite = Callable[[str], str]


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module: pass `__name__`."""
    return logging.getLogger(name)


def configure_logging(level: str = "info", log_format: str = "text") -> None:
    """Send the package's records of `level` and above to stderr; call once per process.

    With the format "json" each is one line of JSON, tracebacks included, and what Python itself would print (warnings,
    exceptions that nobody caught) becomes one too.
    """
    logger = logging.getLogger(ROOT_LOGGER_NAME)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else _TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    if log_format == "json":
        _take_what_python_prints()


def configured_format() -> str:
    """Return the format that this process logs in."""
    return "json" if isinstance(_formatter(), JsonFormatter) else "text"


def announce(text: str, *, level: int = logging.INFO) -> None:
    """Tell the operator on stderr, whatever records are asked for; among lines of JSON as one of them."""
    if isinstance(_formatter(), JsonFormatter):
        logger = logging.getLogger(ROOT_LOGGER_NAME)
        for handler in logger.handlers:
            handler.handle(logger.makeRecord(ROOT_LOGGER_NAME, level, "", 0, "%s", (text.strip("\n"),), None))
    else:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def rewrite_log_lines(rewrite: Rewrite) -> None:
    """Let `rewrite` change the text of every record before it is written, tracebacks included, from now on."""
    for handler in logging.getLogger(ROOT_LOGGER_NAME).handlers:
        if isinstance(handler.formatter, _TextFormatter | JsonFormatter):
            handler.formatter.rewrite = rewrite


def _unchanged(text: str) -> str:
    return text


class _TextFormatter(logging.Formatter):
    """One line for people, and the lines of a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        self.rewrite: Rewrite = _unchanged

    def format(self, record: logging.LogRecord) -> str:
        return self.rewrite(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, pid, message, ids of the request, exception, and whatever a
    record brings as `fields`."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite: Rewrite = _unchanged

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": self.rewrite(record.getMessage()),
        }
        line |= request_ids.get({})
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.rewrite(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def _formatter() -> logging.Formatter | None:
    handlers = logging.getLogger(ROOT_LOGGER_NAME).handlers
    return handlers[0].formatter if handlers else None


def _take_what_python_prints() -> None:
    logger = logging.getLogger(ROOT_LOGGER_NAME)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.critical("an error that nobody caught", exc_info=(kind, error, trace))

    def uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            uncaught(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    logging.captureWarnings(True)
    python_warnings = logging.getLogger("py.warnings")
    python_warnings.handlers[:] = logger.handlers
    python_warnings.propagate = False
