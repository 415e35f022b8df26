"""Logging to stderr under one logger tree, `openautoglm`; data goes to stdout, logs never do."""

from __future__ import annotations

import logging
import sys

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
