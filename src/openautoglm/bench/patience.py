"""`Patience`: how long a client waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits: for a connection, and for a whole answer."""

    connect_seconds: float = 10.0
    answer_seconds: float = 600.0
