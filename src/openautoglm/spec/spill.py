"""Where KV blocks go that the pool has no place for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillTiers:
    """Room for KV blocks of choices that were set back; 0 bytes: there is no such tier.

    `memory_bytes` are host memory within the budget; `disk_bytes` a private file in `directory` (None: in
    the user's cache).
    """

    memory_bytes: int = 0
    disk_bytes: int = 0
    directory: str | None = None

    def __bool__(self) -> bool:
        """Whether there is any tier."""
        return bool(self.memory_bytes or self.disk_bytes)
