"""`SlowStart`: how much of its share of requests a server should get, for balancers that ask."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_WEIGHT = 0.1
WEIGHT_HEADER = "X-Openautoglm-Weight"


class SlowStart:
    """A weight that rises evenly from LEAST_WEIGHT to 1 within `seconds` of `begin`; 0 seconds: 1 at once.

    A new engine begins again: its prefix cache is empty. Safe from any thread.
    """

    def __init__(self, seconds: float = 0.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._begin_seconds = clock()

    def begin(self) -> None:
        """Start from the bottom."""
        self._begin_seconds = self._clock()

    @property
    def weight(self) -> float:
        """The weight now, LEAST_WEIGHT to 1."""
        if self._seconds <= 0:
            return 1.0
        return min(1.0, max(LEAST_WEIGHT, (self._clock() - self._begin_seconds) / self._seconds))
