"""The ledger: every large allocation is a named reservation, charged before its bytes are taken.

    budget  |<------------------------- budget_bytes ------------------------->|
            |  weights  |  KV pool  | workspace | cache |        free          |
            |<----------------- in_use_bytes ----------->|

Invariant, under one lock: in_use_bytes is the sum of the live reservations and never above budget_bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType

from openautoglm.errors import OutOfMemoryError
from openautoglm.units import format_bytes


class Reservation:
    """Bytes charged under a name until `release`; a context manager releases on exit. Made by `Ledger.reserve`."""

    __slots__ = ("_bytes", "_ledger", "_released", "name")

    def __init__(self, ledger: Ledger, name: str, num_bytes: int) -> None:
        self.name = name
        self._ledger = ledger
        self._bytes = num_bytes
        self._released = False

    @property
    def num_bytes(self) -> int:
        """Bytes that this reservation holds now; 0 once released."""
        return 0 if self._released else self._bytes

    def resize(self, num_bytes: int) -> None:
        """Change the size: growth is charged first and may raise `OutOfMemoryError`, which changes nothing."""
        self._ledger._resize(self, num_bytes)

    def release(self) -> None:
        """Give the bytes back; calling it again does nothing."""
        self._ledger._release(self)

    def __enter__(self) -> Reservation:
        """Hold the reservation for a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release."""
        self.release()


class Ledger:
    """A budget of one memory domain (host, a device, disk) and what is charged to it. All methods lock."""

    def __init__(self, budget_bytes: int, *, domain: str = "host") -> None:
        if budget_bytes < 0:
            raise ValueError(f"a budget cannot be negative, got {budget_bytes}")
        self.domain = domain
        self._budget_bytes = budget_bytes
        self._in_use_bytes = 0
        self._peak_bytes = 0
        self._live: dict[int, Reservation] = {}
        self._lock = threading.Lock()

    @property
    def budget_bytes(self) -> int:
        """The budget."""
        return self._budget_bytes

    @property
    def in_use_bytes(self) -> int:
        """The sum of the live reservations."""
        with self._lock:
            return self._in_use_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        with self._lock:
            return self._budget_bytes - self._in_use_bytes

    @property
    def peak_bytes(self) -> int:
        """The largest sum there ever was."""
        with self._lock:
            return self._peak_bytes

    def usage(self) -> Mapping[str, int]:
        """Return bytes per name, reservations of one name summed, in the order in which names came."""
        with self._lock:
            totals: dict[str, int] = {}
            for reservation in self._live.values():
                totals[reservation.name] = totals.get(reservation.name, 0) + reservation.num_bytes
            return totals

    def reserve(self, name: str, num_bytes: int) -> Reservation:
        """Charge `num_bytes` under `name`; raise `OutOfMemoryError` (charging nothing) if the budget forbids it."""
        if num_bytes < 0:
            raise ValueError(f"a reservation cannot be negative, got {num_bytes} for {name!r}")
        reservation = Reservation(self, name, num_bytes)
        with self._lock:
            self._charge(name, num_bytes)
            self._live[id(reservation)] = reservation
        return reservation

    def set_budget(self, budget_bytes: int) -> None:
        """Change the budget; raise `OutOfMemoryError` (changing nothing) if more than that is in use."""
        with self._lock:
            if budget_bytes < self._in_use_bytes:
                raise OutOfMemoryError(
                    f"the {self.domain} budget cannot become {format_bytes(budget_bytes)} while "
                    f"{format_bytes(self._in_use_bytes)} are in use: release reservations first"
                )
            self._budget_bytes = budget_bytes

    def _charge(self, name: str, num_bytes: int) -> None:
        if self._in_use_bytes + num_bytes > self._budget_bytes:
            raise OutOfMemoryError(
                f"{name} asks for {format_bytes(num_bytes)} ({num_bytes} bytes), but of the {self.domain} budget of "
                f"{format_bytes(self._budget_bytes)} ({self._budget_bytes} bytes) {format_bytes(self._in_use_bytes)} "
                f"are in use, so {format_bytes(self._budget_bytes - self._in_use_bytes)} are left: "
                "raise the budget, or use a smaller context, fewer sequences or a smaller format"
            )
        self._in_use_bytes += num_bytes
        self._peak_bytes = max(self._peak_bytes, self._in_use_bytes)

    def _resize(self, reservation: Reservation, num_bytes: int) -> None:
        if num_bytes < 0:
            raise ValueError(f"a reservation cannot be negative, got {num_bytes} for {reservation.name!r}")
        with self._lock:
            if reservation._released:
                raise ValueError(f"the reservation {reservation.name!r} is released and cannot be resized")
            self._charge(reservation.name, num_bytes - reservation._bytes)
            reservation._bytes = num_bytes

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            if not reservation._released:
                self._in_use_bytes -= reservation._bytes
                reservation._released = True
                del self._live[id(reservation)]
