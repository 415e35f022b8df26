"""From signals to a level, and from levels to a rung of the ladder: pure, no clock, no files.

Two pressures, each 0 when all is well and 1 when nothing is left:

    blocks   live blocks / blocks of the pool; 1 when a running sequence had to give blocks up
    bytes    1 - left / headroom, for the tightest of budget, control groups and machine

    bytes  0.8    0.85    0.9    0.95    0.97      1.0        where each rung is entered;
           drop > chunk > stop > spill > preempt > refuse     it is left 0.2 to 0.5 below, one rung at a time,
           <--------------------------------------------      after `dwell_seconds` of calm
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise

from openautoglm.spec.pressure import MemorySignals, Room, Rung
from openautoglm.units import GIB, MIB

MIN_HEADROOM_BYTES = 64 * MIB
MAX_HEADROOM_BYTES = GIB
HEADROOM_SHARE = 50  # one part in 50, as a plan leaves free
# Waiting for memory slows everybody, but takes nothing away: alone it goes as far as stopping admission.
STALL_BEGIN_SHARE = 0.05
STALL_BASE_LEVEL = 0.5
MAX_STALL_LEVEL = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Both levels; a rung is entered for the one that asks for more."""

    blocks: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RungLevels:
    """Where a rung is entered and where it is left again, for each pressure."""

    enter: Pressure
    leave: Pressure

    def __post_init__(self) -> None:
        """Refuse levels without a gap: a pressure that stands still would make the rung come and go."""
        if self.leave.blocks >= self.enter.blocks or self.leave.bytes >= self.enter.bytes:
            raise ValueError(f"a rung must be left below where it is entered, got {self}")

    def asks(self, pressure: Pressure) -> bool:
        """Whether a pressure enters the rung."""
        return pressure.blocks >= self.enter.blocks or pressure.bytes >= self.enter.bytes

    def holds(self, pressure: Pressure) -> bool:
        """Whether a pressure keeps the rung once it is entered."""
        return pressure.blocks > self.leave.blocks or pressure.bytes > self.leave.bytes


def _levels(blocks: tuple[float, float], num_bytes: tuple[float, float]) -> RungLevels:
    return RungLevels(
        enter=Pressure(blocks=blocks[0], bytes=num_bytes[0]), leave=Pressure(blocks=blocks[1], bytes=num_bytes[1])
    )


# A full pool is no emergency: blocks above 1 are events, not shares (see `block_level`).
DEFAULT_LEVELS: dict[Rung, RungLevels] = {
    Rung.DROP_PREFIX: _levels((0.90, 0.80), (0.50, 0.30)),
    Rung.SMALLER_CHUNK: _levels((0.95, 0.85), (0.60, 0.40)),
    Rung.STOP_ADMISSION: _levels((0.98, 0.90), (0.70, 0.50)),
    Rung.SPILL: _levels((1.10, 0.95), (0.80, 0.60)),
    Rung.PREEMPT: _levels((1.20, 0.97), (0.90, 0.70)),
    Rung.REFUSE: _levels((1.30, 1.00), (0.97, 0.80)),
}
DEFAULT_DWELL_SECONDS = 1.0
SPILLED_LEVEL, PREEMPTED_LEVEL, REFUSED_LEVEL = 1.15, 1.25, 1.35
FULL_SHARE = 0.9


def headroom_bytes(limit_bytes: int) -> int:
    """Return what should stay free below a limit; a plan leaves as much, so a planned load has no pressure."""
    return min(max(MIN_HEADROOM_BYTES, limit_bytes // HEADROOM_SHARE), MAX_HEADROOM_BYTES)


def room_level(room: Room) -> float:
    """Return the pressure of one bound: 0 with all of its headroom left, 1 with nothing, more beyond it."""
    return max(0.0, 1.0 - room.left_bytes / headroom_bytes(room.limit_bytes))


def deficit_bytes(rooms: tuple[Room, ...]) -> int:
    """Return the bytes to give back so that every bound has its headroom again; 0 if all have."""
    return max(0, *(headroom_bytes(room.limit_bytes) - room.left_bytes for room in rooms)) if rooms else 0


def spare_bytes(rooms: tuple[Room, ...]) -> int:
    """Return the bytes that could be taken with every bound keeping its headroom; negative if one lacks it."""
    return min((room.left_bytes - headroom_bytes(room.limit_bytes) for room in rooms), default=0)


def byte_level(signals: MemorySignals) -> float:
    """Return the byte pressure: of the tightest bound, or of waiting for memory."""
    level = max((room_level(room) for room in signals.rooms), default=0.0)
    if signals.stalled_share < STALL_BEGIN_SHARE:
        return level
    return max(level, min(MAX_STALL_LEVEL, STALL_BASE_LEVEL + signals.stalled_share))


@dataclass(slots=True, kw_only=True)
class Trend:
    """How fast others take memory below each bound, over the looks of the last `window_seconds`.

    What is left falls by what this process takes too, and that is bounded by its plan: only the rest is a trend.
    """

    window_seconds: float = 0.3
    looks: deque[tuple[float, dict[str, int]]] = field(default_factory=deque)

    def project(self, signals: MemorySignals, now_seconds: float, horizon_seconds: float) -> MemorySignals:
        """Return the signals as they will be after `horizon_seconds`, if others go on as they do."""
        taken = {room.source: room.limit_bytes - room.left_bytes - signals.tree_bytes for room in signals.rooms}
        while len(self.looks) > 1 and self.looks[1][0] <= now_seconds - self.window_seconds:
            self.looks.popleft()
        self.looks.append((now_seconds, taken))
        begin_seconds, before = self.looks[0]
        if begin_seconds >= now_seconds:
            return signals
        share = horizon_seconds / (now_seconds - begin_seconds)
        rises = {source: num_bytes - before.get(source, num_bytes) for source, num_bytes in taken.items()}
        rooms = (
            replace(room, left_bytes=room.left_bytes - int(max(0, rises[room.source]) * share))
            for room in signals.rooms
        )
        return replace(signals, rooms=tuple(rooms))


def block_level(*, num_live: int, num_blocks: int, num_spilled: int, num_preempted: int, num_refused: int) -> float:
    """Return the block pressure: the live share, or above 1 what had to happen since the last look.

    A queue may be full while the pool is not: that is no question of memory.
    """
    share = num_live / num_blocks if num_blocks else 0.0
    if num_refused and share >= FULL_SHARE:
        return REFUSED_LEVEL
    if num_preempted:
        return PREEMPTED_LEVEL
    return SPILLED_LEVEL if num_spilled else share


@dataclass(slots=True, kw_only=True)
class LadderState:
    """Which rung holds. One method changes it; times are seconds of any steady clock.

    Down the ladder at once, rung by rung. Up one rung at a time, after the pressure has been below the rung's leave
    level for `dwell_seconds`: whatever the pressure does, a rung lasts that long.
    """

    levels: dict[Rung, RungLevels] = field(default_factory=lambda: dict(DEFAULT_LEVELS))
    dwell_seconds: float = DEFAULT_DWELL_SECONDS
    rung: Rung = Rung.NONE
    held_seconds: float = float("-inf")

    def __post_init__(self) -> None:
        """Refuse levels that are not in the order of the rungs."""
        rungs = [self.levels[rung] for rung in Rung if rung is not Rung.NONE]
        for milder, harder in pairwise(rungs):
            if harder.enter.blocks < milder.enter.blocks or harder.enter.bytes < milder.enter.bytes:
                raise ValueError("a harder rung must not be entered before a milder one")
            if harder.leave.blocks < milder.leave.blocks or harder.leave.bytes < milder.leave.bytes:
                raise ValueError("a harder rung must not be left after a milder one")

    def descend(self, pressure: Pressure, now_seconds: float) -> Rung | None:
        """Enter the next harder rung if the pressure asks for it; return it, None if the ladder stays."""
        if self.rung is Rung.REFUSE or not self.levels[Rung(self.rung + 1)].asks(pressure):
            return None
        self.rung = Rung(self.rung + 1)
        self.held_seconds = now_seconds
        return self.rung

    def recover(self, pressure: Pressure, now_seconds: float) -> Rung | None:
        """Leave the current rung after its calm; return the rung that was left, None if the ladder stays."""
        if self.rung is Rung.NONE:
            return None
        if self.levels[self.rung].holds(pressure):
            self.held_seconds = now_seconds
            return None
        if now_seconds - self.held_seconds < self.dwell_seconds:
            return None
        left, self.rung = self.rung, Rung(self.rung - 1)
        self.held_seconds = now_seconds
        return left
