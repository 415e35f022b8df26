"""`Strangers`: connections that never made a request. Anybody can open them, so all are counted and few are logged."""

from __future__ import annotations

import time
from collections.abc import Callable

from openautoglm.log import get_logger

MALFORMED = "malformed"
LATE = "late"
_QUIET_SECONDS = 60.0

_logger = get_logger(__name__)


class Strangers:
    """Counts by reason, and writes at most one line in `quiet_seconds`; the next line tells how many there were."""

    def __init__(self, *, quiet_seconds: float = _QUIET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = {MALFORMED: 0, LATE: 0}
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._last: float | None = None
        self._num_told = 0

    def turned_away(self, reason: str) -> None:
        """Count a connection that was closed before it made a request."""
        self.counts[reason] += 1
        now = self._clock()
        if self._last is not None and now - self._last < self._quiet_seconds:
            return
        self._last = now
        total = sum(self.counts.values())
        _logger.warning(
            "a connection was turned away: %s; %d since the line before",
            "its head did not arrive in time" if reason == LATE else "it sent no HTTP/1.1, or too large a head",
            total - self._num_told,
        )
        self._num_told = total
