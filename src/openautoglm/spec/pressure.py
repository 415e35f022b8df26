"""How tight memory is, and the rungs of the ladder that an engine goes down when it gets tight."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Rung(IntEnum):
    """What an engine does about memory, mildest first. A rung includes those before it."""

    NONE = 0
    DROP_PREFIX = 1
    SMALLER_CHUNK = 2
    STOP_ADMISSION = 3
    SPILL = 4
    PREEMPT = 5
    REFUSE = 6

    @property
    def label(self) -> str:
        """The name in metrics, logs and answers."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One bound on the bytes of a process: what it allows, and what is left below it now (negative: exceeded).

    `source` is "budget", "machine" or the directory of a control group.
    """

    source: str
    limit_bytes: int
    left_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySignals:
    """One look at the memory around a process tree.

    `tree_bytes` is what the tree takes. `rooms` holds every bound above it. `stalled_share` is the share of time since
    the look before in which some task waited for memory (PSI "some"), 0 where the kernel does not say.
    `announced_bytes` is the least soft limit of the control groups (v2 memory.high), None without one.
    """

    tree_bytes: int
    rooms: tuple[Room, ...]
    stalled_share: float = 0.0
    announced_bytes: int | None = None
