"""Logging to stderr under one logger tree, `openautoglm`; data goes to stdout, logs never do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

ROOT_LOGGER_NAME = "openautoglm"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module: pass `__name__`."""
    return logging.getLogger(name)


def configure_logging(level: str = "info") -> None:
    """Send the package's records of `level` and above to stderr, one line each; call once per process."""
    logger = logging.getLogger(ROOT_LOGGER_NAME)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _RewritingFormatter(logging.Formatter):
    """Passes what another formatter wrote, tracebacks included, through a function."""

    def __init__(self, inner: logging.Formatter, rewrite: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner
        self._rewrite = rewrite

    def format(self, record: logging.LogRecord) -> str:
        return self._rewrite(self._inner.format(record))


def rewrite_log_lines(rewrite: Callable[[str], str]) -> None:
    """Let `rewrite` change every record before it is written, from now on."""
    for handler in logging.getLogger(ROOT_LOGGER_NAME).handlers:
        handler.setFormatter(_RewritingFormatter(handler.formatter or logging.Formatter(), rewrite))
