"""What a watchdog looks for, and where it writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogOptions:
    """When growth of memory beyond the ledger is reported by itself, and where reports go.

    `enabled` turns on the rule of a share of the ledger in five minutes; `slope_bytes_per_minute` adds a second rule.
    `directory` is where reports are written, None for the user's default. A report that is asked for needs no rule.
    """

    enabled: bool = True
    slope_bytes_per_minute: int | None = None
    directory: str | None = None
