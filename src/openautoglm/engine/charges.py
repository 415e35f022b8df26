"""`RequestCharges`: what requests take in the engine's process beside their blocks, charged while they live."""

from __future__ import annotations

from openautoglm.engine.client import GenerationRequest
from openautoglm.errors import InvalidRequestError, OutOfMemoryError, OverloadedError
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.memory.requests import request_bytes, request_space
from openautoglm.planner.price import MIN_HEADROOM_BYTES
from openautoglm.units import format_bytes

# The share of the smallest headroom that a plan can have.
LEAST_SPACE_BYTES = request_space(MIN_HEADROOM_BYTES).engine_bytes
_RETRY_SECONDS = 1.0
# The most that Python takes for a character of text.
_CHARACTER_BYTES = 4


class RequestCharges:
    """A ledger of the requests of one engine, by id. One thread only."""

    def __init__(self, num_bytes: int, *, context_tokens: int) -> None:
        self.ledger = Ledger(num_bytes, domain="requests")
        self._context_tokens = context_tokens
        self._held: dict[str, Reservation] = {}

    def take(self, generation: GenerationRequest) -> None:
        """Charge a request at its largest until `release`.

        Raises `OverloadedError` where it finds no room now and `InvalidRequestError` where it never could.
        """
        sampling, name = generation.sampling, generation.request_id
        num_prompt = min(len(generation.prompt_tokens), self._context_tokens)
        room = self._context_tokens - num_prompt
        needed = request_bytes(num_prompt, min(sampling.max_tokens or room, room), sampling.n)
        if sampling.constraint is not None:
            needed += _CHARACTER_BYTES * len(sampling.constraint.text)
        if needed > self.ledger.budget_bytes:
            raise InvalidRequestError(
                f"{sampling.n} choices of a prompt of {num_prompt} tokens take {format_bytes(needed)} of the "
                f"{format_bytes(self.ledger.budget_bytes)} that there are for all requests: lower n or max_tokens",
                param="n",
            )
        try:
            self._held[name] = self.ledger.reserve(name, needed)
        except OutOfMemoryError as error:
            raise OverloadedError(
                "the requests that run or wait fill the memory there is for them: try again later",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error

    def release(self, request_id: str) -> None:
        """Give back what a request was charged, if anything."""
        held = self._held.pop(request_id, None)
        if held is not None:
            held.release()
