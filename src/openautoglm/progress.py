"""How long work tells how far it is: a stage, what is done, and of how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """News of a stage ("download", "load"): `done_bytes` of `total_bytes`; the last news has both equal."""

    stage: str
    done_bytes: int
    total_bytes: int


ProgressCallback = Callable[[Progress], None]
