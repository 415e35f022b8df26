"""`Deadline`: by when a request is to have ended, counted from its arrival, so that waiting in this process counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from openautoglm.errors import DeadlineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """`seconds` after `begin_seconds` on the `clock`; None is never."""

    seconds: float | None = None
    begin_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def left_seconds(self) -> float | None:
        """Return what is left, None for no end; raise `DeadlineError` if nothing is."""
        if self.seconds is None:
            return None
        left = self.begin_seconds + self.seconds - self.clock()
        if left <= 0:
            raise DeadlineError(
                f"deadline_seconds {self.seconds:g} had passed before the engine got the request, as many others were "
                "being read: allow more, or try again later"
            )
        return left


NO_DEADLINE = Deadline()
