"""`AllocationTrace`: which lines of Python hold memory, on demand; bounded, because tracing itself takes memory.

tracemalloc remembers 53 bytes per living object and copies 170 more of each for a snapshot (measured on CPython 3.11).
When what it remembers exceeds TRACER_BYTES, the largest lines are noted and tracing ends; with a look every
LOOK_SECONDS at the longest, it stays within TRACE_BYTES unless objects come faster than 50,000 a second and stay.
Only objects made since the start are seen, and only file names and line numbers: never what they hold.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openautoglm.log import get_logger
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.units import MIB, format_bytes

_log = get_logger(__name__)

TRACER_BYTES = 3 * MIB
TRACE_BYTES = 16 * MIB
LOOK_SECONDS = 1.0
NUM_LINES = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLine:
    """A line of code, and what of the objects that it made since the start still lives."""

    place: str
    num_objects: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLines:
    """The lines that hold most, and for how long objects were followed; `ended` says why tracing ended, if it did."""

    seconds: float
    traced_bytes: int
    lines: tuple[TracedLine, ...]
    ended: str | None = None


class AllocationTrace:
    """Starts and stops tracing in this process, and ends it when it takes too much. Safe from any thread.

    `ledger` is charged TRACE_BYTES for each of `num_processes` that trace at once, from `start` to `stop`.
    """

    def __init__(
        self,
        ledger: Ledger | None = None,
        *,
        num_processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        tracer_bytes: int = TRACER_BYTES,
    ) -> None:
        self._ledger = ledger
        self._charge_bytes = num_processes * TRACE_BYTES
        self._charge: Reservation | None = None
        self._clock = clock
        self._tracer_bytes = tracer_bytes
        self._lock = threading.Lock()
        self._started_seconds: float | None = None
        self._last: TracedLines | None = None

    @property
    def running(self) -> bool:
        """Whether objects are being followed."""
        return self._started_seconds is not None

    def start(self) -> None:
        """Follow objects made from now on; one that runs goes on. Python code is several times as slow meanwhile.

        Raises `OutOfMemoryError`, changing nothing, where the ledger has no room for it.
        """
        with self._lock:
            if self._started_seconds is None:
                if self._charge is None and self._ledger is not None:
                    self._charge = self._ledger.reserve("allocation tracing", self._charge_bytes)
                self._last = None
                self._started_seconds = self._clock()
                tracemalloc.start(1)

    def stop(self) -> None:
        """Stop and forget; safe to call twice."""
        with self._lock:
            self._end()
            self._last = None
            if self._charge is not None:
                self._charge.release()
                self._charge = None

    def look(self) -> bool:
        """End tracing if it takes too much, keeping what it has found; return whether that happened."""
        with self._lock:
            if self._started_seconds is None or tracemalloc.get_tracemalloc_memory() <= self._tracer_bytes:
                return False
            reason = f"following more objects would take more than {format_bytes(self._tracer_bytes)}"
            self._last = self._take(self._started_seconds, ended=reason)
            self._end()
        _log.warning("tracing of allocations has ended: %s; the report has what was found", reason)
        return True

    def lines(self) -> TracedLines | None:
        """Return the lines that hold most now, or those of the end; None where nothing was traced.

        Peak bytes: TRACE_BYTES with what the tracer holds.
        """
        with self._lock:
            if self._started_seconds is None:
                return self._last
            return self._take(self._started_seconds)

    def _take(self, started_seconds: float, *, ended: str | None = None) -> TracedLines:
        snapshot = tracemalloc.take_snapshot()
        seconds = self._clock() - started_seconds
        traced_bytes = sum(trace.size for trace in snapshot.traces)
        statistics = snapshot.statistics("lineno")[:NUM_LINES]
        del snapshot
        lines = tuple(
            TracedLine(
                place=f"{_short(line.traceback[0].filename)}:{line.traceback[0].lineno}",
                num_objects=line.count,
                num_bytes=line.size,
            )
            for line in statistics
        )
        return TracedLines(seconds=seconds, traced_bytes=traced_bytes, lines=lines, ended=ended)

    def _end(self) -> None:
        if self._started_seconds is not None:
            self._started_seconds = None
            tracemalloc.stop()


def _short(filename: str) -> str:
    """Return the last parts of a path: enough to find the line, nothing of whose home it lies in."""
    return "/".join(Path(filename).parts[-3:])
