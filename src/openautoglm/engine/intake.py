"""`Intake`: what an engine takes, and what it refuses by type. Blocks and lists are the scheduler's."""

from __future__ import annotations

import time
from collections.abc import Callable

from openautoglm.engine.admission import AdmissionLimits, make_request
from openautoglm.engine.charges import RequestCharges
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.gate import DeadlineGate
from openautoglm.engine.pace import Pace
from openautoglm.engine.request import Request
from openautoglm.errors import DeadlineError, MemoryPressureError, OverloadedError
from openautoglm.text.detokenize import TokenSource


class Intake:
    """Makes requests of what is sent, at most `max_running` + `max_queued` at a time, and charges them until `release`.

    While `refuses` is set, nothing new is taken. One thread only.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        tokenizer: TokenSource,
        gate: DeadlineGate,
        *,
        max_running: int,
        max_queued: int,
        space_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._gate = gate
        self._max_running, self._max_queued = max_running, max_queued
        self._charges = RequestCharges(space_bytes, limits)
        self._clock = clock
        self._pace = Pace(clock)
        self.refuses = False
        self.num_refused = self.num_taken = self.prompt_tokens = 0

    @property
    def charged_bytes(self) -> int:
        """What unfinished requests are charged beside their blocks."""
        return self._charges.ledger.in_use_bytes

    @property
    def num_pooled(self) -> int:
        """How many unfinished requests are for embeddings."""
        return self._charges.num_pooled

    def take(self, generation: GenerationRequest, *, num_requests: int, num_blocks: int) -> Request:
        """Return a request beside `num_requests` unfinished ones, for a pool that has `num_blocks` now.

        Raises what `Engine.add` raises; then nothing is charged.
        """
        self._check_room(num_requests)
        now = self._clock()
        request = make_request(generation, self._limits, self._tokenizer, arrival=self.num_taken, now_seconds=now)
        if request.max_blocks > num_blocks:
            raise OverloadedError(
                f"{request.request_id} may need {request.max_blocks} blocks of KV cache, and the pool has shrunk to "
                f"{num_blocks} for now: ask for fewer max_tokens, or try again later",
                retry_after_seconds=self._pace.seconds_until_finished(num_requests),
            )
        if self._gate.hopeless(request, now):
            raise DeadlineError(
                f"{request.num_prompt_tokens} prompt tokens and the expected answer take longer here than "
                f"deadline_seconds {request.deadline_seconds:g}, even alone: ask for fewer max_tokens or allow more"
            )
        self._charges.take(generation)
        self.num_taken += 1
        self.prompt_tokens += request.num_prompt_tokens
        return request

    def release(self, request_id: str) -> None:
        """A request that was taken has ended."""
        self._charges.release(request_id)
        self._pace.request_finished()

    def _check_room(self, num_requests: int) -> None:
        if self.refuses:
            self.num_refused += 1
            raise MemoryPressureError(
                "memory is being taken away from this server, which takes nothing new now: try again later",
                retry_after_seconds=self._pace.seconds_until_finished(num_requests),
            )
        if num_requests >= self._max_running + self._max_queued:
            self.num_refused += 1
            raise OverloadedError(
                f"{num_requests} requests run or wait, which is the limit: try again later",
                retry_after_seconds=self._pace.seconds_until_finished(num_requests - self._max_running),
            )
