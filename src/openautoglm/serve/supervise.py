"""Keeps an engine process running: one that ends is replaced, while the port stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from openautoglm.engine.client import EngineDescription
from openautoglm.errors import OpenAutoGLMError
from openautoglm.log import get_logger

_POLL_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 1.0
# One that keeps dying soon after its start would only burn the machine: the server gives up and says so.
MAX_STARTS_IN_A_ROW = 5
_STABLE_SECONDS = 60.0

_logger = get_logger(__name__)


class Restartable(Protocol):
    """What is asked of the engine's process."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def start(self) -> EngineDescription:
        """Start it and wait until it takes requests."""
        ...


async def keep_running(process: Restartable, on_restart: Callable[[], None] = lambda: None) -> None:
    """Watch `process` and start it again whenever it has ended, and tell; return when that has become pointless."""
    failures = 0
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        if process.alive:
            continue
        failures = 1 if loop.time() - started > _STABLE_SECONDS else failures + 1
        if failures > MAX_STARTS_IN_A_ROW:
            _logger.error("the engine process ended %d times in a row: giving up", failures)
            return
        _logger.error("the engine process has ended; its requests fail, and a new one is started")
        await asyncio.sleep(_FIRST_PAUSE_SECONDS * (failures - 1))
        started = loop.time()
        try:
            await asyncio.to_thread(process.start)
        except OpenAutoGLMError as error:
            _logger.error("the engine could not be started again: %s", error)
            continue
        started = loop.time()
        on_restart()
        _logger.warning("the engine process runs again")
