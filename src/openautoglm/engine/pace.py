"""`Pace`: how fast requests finish, for honest Retry-After values."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_REQUESTS = 32
MAX_RETRY_SECONDS = 120.0


class Pace:
    """Remembers when the last requests finished."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished_seconds: deque[float] = deque(maxlen=WINDOW_REQUESTS)

    def request_finished(self) -> None:
        """Record that a request has ended now."""
        self._finished_seconds.append(self._clock())

    def seconds_until_finished(self, num_requests: int) -> float:
        """Estimate when `num_requests` more will have ended: at least 1 second, at most MAX_RETRY_SECONDS."""
        times = self._finished_seconds
        if len(times) < 2:
            return 1.0
        # Up to now, not up to the last one: an engine that has stalled must not look fast.
        seconds_each = (self._clock() - times[0]) / (len(times) - 1)
        return min(max(1.0, round(seconds_each * max(1, num_requests), 1)), MAX_RETRY_SECONDS)
