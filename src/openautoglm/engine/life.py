"""`LifeWatch`: whether an engine's process still gets on, seen from another one that asks it nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

from openautoglm.probe.process_activity import ProcessActivity, process_activity

# Found within 10 s, the last look included.
SILENT_SECONDS = STOPPED_SECONDS = 8.0
BUSY_SECONDS = 120.0
_WINDOW_SECONDS = 1.0
# Answering health checks takes less of a second than this; a step that nearly starves takes more.
_BUSY_SHARE = 0.02


class LifeWatch:
    """Judges one process by its beats, and by what the system tells where they stay out.

    A beat may stay out for long while one layer is computed or read on a slow machine, so for `busy_seconds` whatever
    uses the processor or reads from a disk gets on. What does neither has `silent_seconds`, and where it is stopped
    (SIGSTOP) at most `STOPPED_SECONDS`. Of the time between two looks at most a second counts: a watcher that was
    stopped itself, or frozen along with what it watches, must not take its own absence for silence.
    """

    def __init__(
        self,
        pid: int,
        beats: Callable[[], int],
        *,
        silent_seconds: float = SILENT_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        activity: Callable[[int], ProcessActivity | None] = process_activity,
    ) -> None:
        self._pid = pid
        self._beats = beats
        self._silent_limit_seconds = silent_seconds
        self._busy_limit_seconds = busy_seconds
        self._clock = clock
        self._activity = activity
        self._looked = clock()
        self._last_beats = beats()
        self._without_beat_seconds = self._silent_seconds = self._window_seconds = 0.0
        # What it had done when the window began.
        self._before = activity(pid)

    def look(self) -> str | None:
        """Return what is wrong with the process, None while nothing is. Call it every second or more often."""
        now = self._clock()
        passed_seconds, self._looked = min(now - self._looked, _WINDOW_SECONDS), now
        beats = self._beats()
        if beats != self._last_beats:
            self._last_beats, self._before = beats, self._activity(self._pid)
            self._without_beat_seconds = self._silent_seconds = self._window_seconds = 0.0
            return None
        self._without_beat_seconds += passed_seconds
        self._window_seconds += passed_seconds
        if self._window_seconds >= _WINDOW_SECONDS:
            self._close_window()
        stopped = self._before is not None and self._before.stopped
        if self._silent_seconds >= min(self._silent_limit_seconds, STOPPED_SECONDS if stopped else inf):
            return f"{'is stopped and ' if stopped else ''}gave no sign of life for {self._silent_seconds:.0f} s"
        if self._without_beat_seconds >= self._busy_limit_seconds:
            return f"is busy, but has not got on for {self._without_beat_seconds:.0f} s"
        return None

    def _close_window(self) -> None:
        activity = self._activity(self._pid)
        if activity is None or self._before is None:
            return  # it is gone, which its parent sees, or this process has no descriptor left to look
        busy = activity.cpu_seconds - self._before.cpu_seconds > _BUSY_SHARE * self._window_seconds
        reads = activity.disk_bytes > self._before.disk_bytes
        self._silent_seconds = 0.0 if busy or reads else self._silent_seconds + self._window_seconds
        self._before, self._window_seconds = activity, 0.0
