"""`Drain`: what runs, and how it comes to an end when the server stops."""

from __future__ import annotations

import asyncio


class Drain:
    """Counts requests under way. Used from the event loop only.

    Draining refuses new work while what runs goes on; `cut` then ends the rest at the deadline, each with an error
    that its client sees.
    """

    def __init__(self) -> None:
        self._num_active = 0
        self._num_entered = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    @property
    def num_active(self) -> int:
        """Requests under way."""
        return self._num_active

    @property
    def num_entered(self) -> int:
        """Requests that there ever were."""
        return self._num_entered

    @property
    def cut(self) -> asyncio.Event:
        """Set when requests under way must end now."""
        return self._cut

    def begin(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    def enter(self) -> None:
        """Count a request in."""
        self._num_active += 1
        self._num_entered += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a request out."""
        self._num_active -= 1
        if self._num_active == 0:
            self._idle.set()

    async def finish(self, deadline_seconds: float, grace_seconds: float = 2.0) -> bool:
        """Wait until nothing runs; cut what still runs at the deadline. Return whether all ended by themselves."""
        self.begin()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._cut.set()
        else:
            return True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return False
