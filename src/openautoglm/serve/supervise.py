"""Keeps an engine process running: one that ends or stalls is replaced, while the port stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from openautoglm.engine.client import EngineDescription
from openautoglm.errors import OpenAutoGLMError
from openautoglm.log import get_logger

_POLL_SECONDS = 0.2
# One that ends soon after its start is started again after a pause, which grows: the machine has better to do.
_STABLE_SECONDS = 60.0
_MORE_PAUSE_SECONDS = 0.5
_MOST_PAUSE_SECONDS = 2.0
# One that does not come up any more needs an operator: the server gives up and says so.
MAX_FAILED_STARTS = 5

_logger = get_logger(__name__)


class Restartable(Protocol):
    """What is asked of the engine's process."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def stalled(self) -> str | None:
        """Return why it counts as stalled although it runs, None while it does not."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def start(self) -> EngineDescription:
        """Start it and wait until it takes requests."""
        ...


async def keep_running(process: Restartable, on_restart: Callable[[], None] = lambda: None) -> None:
    """Watch `process` and start it again whenever it has ended, and tell; return when it cannot be started any more."""
    num_ends = num_failed_starts = 0
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        if process.alive:
            reason = process.stalled()
            if reason is None:
                continue
            _logger.error("the engine process %s: it is ended", reason)
            await asyncio.to_thread(process.kill)
        num_ends = 1 if loop.time() - started > _STABLE_SECONDS else num_ends + 1
        _logger.error("the engine process has ended; its requests fail, and a new one is started")
        await asyncio.sleep(min((num_ends - 1) * _MORE_PAUSE_SECONDS, _MOST_PAUSE_SECONDS))
        started = loop.time()
        try:
            await asyncio.to_thread(process.start)
        except (OpenAutoGLMError, OSError) as error:
            _logger.error("the engine could not be started again: %s", error)
            num_failed_starts += 1
            if num_failed_starts == MAX_FAILED_STARTS:
                _logger.error("the engine could not be started %d times in a row: giving up", num_failed_starts)
                return
            continue
        num_failed_starts, started = 0, loop.time()
        on_restart()
        _logger.warning("the engine process runs again")
