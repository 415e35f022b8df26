"""`Timeline`: where the time of one choice goes. Its phases add up to the time from arrival to end."""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """What a choice is doing. A choice that lost its blocks stays PREEMPTED or SPILLED until its next token."""

    QUEUE = 0
    PREFILL = 1
    DECODE = 2
    PREEMPTED = 3
    SPILLED = 4
    ENDED = 5


class Timeline:
    """Seconds per phase; `now_seconds` is the same steady clock in every call."""

    __slots__ = ("_seconds", "_since_seconds", "num_preemptions", "num_spills", "phase")

    def __init__(self, now_seconds: float) -> None:
        self.phase = Phase.QUEUE
        self.num_preemptions = 0
        self.num_spills = 0
        self._since_seconds = now_seconds
        self._seconds = [0.0] * len(Phase)

    def enter(self, phase: Phase, now_seconds: float) -> None:
        """Change the phase; nothing follows ENDED."""
        if self.phase is Phase.ENDED:
            return
        self._seconds[self.phase] += now_seconds - self._since_seconds
        self._since_seconds = now_seconds
        self.phase = phase
        self.num_preemptions += phase is Phase.PREEMPTED
        self.num_spills += phase is Phase.SPILLED

    def start(self, now_seconds: float) -> None:
        """The choice was admitted: for the first time its prompt begins, later it is still making up for a loss."""
        if self.phase is Phase.QUEUE:
            self.enter(Phase.PREFILL, now_seconds)

    def seconds(self, now_seconds: float) -> tuple[float, ...]:
        """Return the seconds of QUEUE, PREFILL, DECODE, PREEMPTED and SPILLED until now, or until the end."""
        seconds = list(self._seconds)
        seconds[self.phase] += now_seconds - self._since_seconds
        return tuple(seconds[: Phase.ENDED])
