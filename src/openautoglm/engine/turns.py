"""`EngineTurns`: an engine that its callers step in turns, and calls of other threads between two steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from openautoglm.engine.calls import Call

LOCK_SECONDS = 0.01


class EngineTurns:
    """Whoever holds `lock` may step the engine, and runs what others have asked for before each step."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run_calls(self) -> None:
        """Run what was asked for; the caller holds the lock."""
        while not self._calls.empty():
            self._calls.get()()

    def call(self, function: Callable[[], None]) -> Future[None]:
        """Run `function` between two steps and wait for it: whoever steps does it, or this thread if nobody does."""
        call = Call(function)
        self._calls.put(call)
        while not call.future.done():
            if self.lock.acquire(timeout=LOCK_SECONDS):
                try:
                    self.run_calls()
                finally:
                    self.lock.release()
        return call.future
