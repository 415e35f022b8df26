"""`Intake`: what requests under way take in the HTTP process, charged before it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openautoglm.errors import OutOfMemoryError, OverloadedError
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.memory.requests import ANSWER_COPIES, BODY_COPIES, OBJECT_BYTES, RequestSpace
from openautoglm.units import KIB

_GRAIN_BYTES = 16 * KIB
_RETRY_SECONDS = 1.0


class Intake:
    """Two ledgers of one event loop. A body waits for room, in the order of arrival; an answer that finds none ends."""

    def __init__(self, space: RequestSpace, *, wait_seconds: float = 10.0) -> None:
        self.bodies = Ledger(space.body_bytes, domain="request bodies")
        self.answers = Ledger(space.answer_bytes, domain="answers")
        self._wait_seconds = wait_seconds
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def body(self, num_bytes: int) -> AsyncIterator[BodyCharge]:
        """Charge a body of so many bytes until its request is with the engine, or the block ends.

        Raises `OverloadedError` if there is no room in time.
        """
        charge = BodyCharge(await self._wait_for(num_bytes * BODY_COPIES), self._freed)
        try:
            yield charge
        finally:
            charge.release()

    async def _wait_for(self, num_bytes: int) -> Reservation:
        try:
            async with asyncio.timeout(self._wait_seconds), self._turn:
                while True:
                    self._freed.clear()
                    try:
                        return self.bodies.reserve("body", num_bytes)
                    except OutOfMemoryError:
                        await self._freed.wait()
        except TimeoutError:
            raise OverloadedError(
                f"other requests are being read, and there was no room for this one within {self._wait_seconds:g} s: "
                "try again later",
                retry_after_seconds=_RETRY_SECONDS,
            ) from None

    def answer(self) -> AnswerCharge:
        """Return the charge of one answer that is collected, nothing so far."""
        return AnswerCharge(self.answers)


class BodyCharge:
    """What one body was charged."""

    def __init__(self, reservation: Reservation, freed: asyncio.Event) -> None:
        self._reservation = reservation
        self._freed = freed

    def add_objects(self, count: int) -> None:
        """Charge what strings, lists and objects take as such; raise `OverloadedError` if that finds no room now."""
        try:
            self._reservation.resize(self._reservation.num_bytes + count * OBJECT_BYTES)
        except OutOfMemoryError:
            raise OverloadedError(
                f"the body has {count} strings, lists and objects, more than there is room for now: send fewer, or try "
                "again later",
                retry_after_seconds=_RETRY_SECONDS,
            ) from None

    def release(self) -> None:
        """Give it back; safe to call twice."""
        self._reservation.release()
        self._freed.set()


class AnswerCharge:
    """What one answer has been charged so far, in steps of 16 KiB."""

    def __init__(self, ledger: Ledger) -> None:
        self._reservation = ledger.reserve("answer", 0)
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Charge so many more bytes; raise `OverloadedError` if all answers together fill their share."""
        self._num_bytes += num_bytes
        needed = self._num_bytes * ANSWER_COPIES
        if needed <= self._reservation.num_bytes:
            return
        try:
            self._reservation.resize(needed + _GRAIN_BYTES)
        except OutOfMemoryError:
            raise OverloadedError(
                "the answers that are being collected fill the memory there is for them: stream this one, ask for "
                "fewer logprobs, choices or tokens, or try again later",
                retry_after_seconds=_RETRY_SECONDS,
            ) from None

    def release(self) -> None:
        """Give it back; safe to call twice."""
        self._reservation.release()
