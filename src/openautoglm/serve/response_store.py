"""`ResponseStore`: responses that clients asked to have kept, in memory, each for its tenant alone."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass

from openautoglm.errors import OutOfMemoryError, OverloadedError
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.units import format_bytes

# Of the share of memory that answers have: the others find three quarters of it, whatever is kept.
_SHARE = 4
# Objects around the bytes of one response.
_RESPONSE_BYTES = 1024
_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A finished response and the conversation up to and including it, both as JSON."""

    response: bytes
    messages: bytes


class ResponseStore:
    """At most `max_responses` of each tenant for `seconds`, in at most a quarter of the ledger's budget.

    What finds no room takes that of the oldest of whoever has most. One event loop's.
    """

    def __init__(self, ledger: Ledger, *, max_responses: int, seconds: float) -> None:
        self._ledger = ledger
        self._max_bytes = ledger.budget_bytes // _SHARE
        self._max_responses = max_responses
        self._seconds = seconds
        # (tenant, id) -> response, oldest first.
        self._kept: OrderedDict[tuple[str, str], tuple[StoredResponse, Reservation]] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """What is charged, drafts included."""
        return self._num_bytes

    def begin(self, num_bytes: int) -> Draft:
        """Reserve room for what is known at the beginning; `Draft.close` must follow.

        Raises `OverloadedError` where there is none, even if everything kept were dropped.
        """
        return Draft(self, self.reserve(_RESPONSE_BYTES + num_bytes))

    def find(self, tenant: str, identity: str) -> StoredResponse | None:
        """Return a tenant's response; None for one that was never kept, or no longer is."""
        kept = self._kept.get((tenant, identity))
        return None if kept is None else kept[0]

    def delete(self, tenant: str, identity: str) -> bool:
        """Drop a tenant's response; return whether there was one."""
        return self._drop((tenant, identity))

    def keep(self, tenant: str, identity: str, stored: StoredResponse, reservation: Reservation) -> None:
        """Keep a response whose reservation covers it."""
        own = [key for key in self._kept if key[0] == tenant]
        for key in own[: max(0, len(own) + 1 - self._max_responses)]:
            self._drop(key)
        self._kept[tenant, identity] = (stored, reservation)
        asyncio.get_running_loop().call_later(self._seconds, self._drop, (tenant, identity))

    def reserve(self, num_bytes: int) -> Reservation:
        """Charge so many bytes; drop kept responses where that finds no room, and raise if it never does."""
        while num_bytes <= self._max_bytes:
            if self._num_bytes + num_bytes <= self._max_bytes:
                try:
                    reservation = self._ledger.reserve("stored responses", num_bytes)
                except OutOfMemoryError:
                    pass
                else:
                    self._num_bytes += num_bytes
                    return reservation
            if not self._kept:
                break
            self._drop(self._next_to_go())
        raise OverloadedError(
            f"the response takes {format_bytes(num_bytes)}, and there is no room to keep it: ask for it without store, "
            "or try again later",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def give_back(self, reservation: Reservation) -> None:
        """Release what `reserve` charged."""
        self._num_bytes -= reservation.num_bytes
        reservation.release()

    def _next_to_go(self) -> tuple[str, str]:
        owners = Counter[str]()
        for (owner, _), (_, reservation) in self._kept.items():
            owners[owner] += reservation.num_bytes
        most = owners.most_common(1)[0][0]
        return next(key for key in self._kept if key[0] == most)

    def _drop(self, key: tuple[str, str]) -> bool:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.give_back(kept[1])
        return kept is not None


class Draft:
    """Room for one response that is being made."""

    def __init__(self, store: ResponseStore, reservation: Reservation) -> None:
        self._store = store
        self._reservation: Reservation | None = reservation

    def finish(self, tenant: str, identity: str, stored: StoredResponse) -> None:
        """Keep the response; raise `OverloadedError` where it has grown beyond what there is."""
        num_bytes = _RESPONSE_BYTES + len(stored.response) + len(stored.messages)
        self.close()
        self._store.keep(tenant, identity, stored, self._store.reserve(num_bytes))

    def close(self) -> None:
        """Give the room back, unless the response was kept; safe to call twice."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._store.give_back(reservation)
