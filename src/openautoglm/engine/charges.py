"""`RequestCharges`: what requests take in the engine's process beside their blocks, charged while they live."""

from __future__ import annotations

from openautoglm.engine.admission import AdmissionLimits
from openautoglm.engine.client import GenerationRequest, Pooling
from openautoglm.engine.pooled import hidden_bytes, pooled_bytes
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

    def __init__(self, num_bytes: int, limits: AdmissionLimits) -> None:
        self.ledger = Ledger(num_bytes, domain="requests")
        self._limits = limits
        self._held: dict[str, Reservation] = {}
        # Tokens whose hidden states a step may have to give, by request; together no more than a step has.
        self._pooled_tokens: dict[str, int] = {}
        self._hidden = self.ledger.reserve("hidden states", 0)

    @property
    def num_pooled(self) -> int:
        """How many unfinished requests are for embeddings."""
        return len(self._pooled_tokens)

    def take(self, generation: GenerationRequest) -> None:
        """Charge a request at its largest until `release`.

        Raises `OverloadedError` where it finds no room now and `InvalidRequestError` where it never could.
        """
        sampling, name = generation.sampling, generation.request_id
        limits = self._limits
        num_prompt = min(len(generation.prompt_tokens), limits.context_tokens)
        room = limits.context_tokens - num_prompt
        needed = request_bytes(num_prompt, min(sampling.max_tokens or room, room), sampling.n)
        if sampling.constraint is not None:
            needed += _CHARACTER_BYTES * len(sampling.constraint.text)
        num_pooled = 0
        if generation.pooling is not None:
            needed += pooled_bytes(limits.hidden_size)
            num_pooled = num_prompt if generation.pooling is Pooling.MEAN else 1
            self._check_pooled(needed, num_pooled)
        if needed > self.ledger.budget_bytes:
            raise InvalidRequestError(
                f"{sampling.n} choices of a prompt of {num_prompt} tokens take {format_bytes(needed)} of the "
                f"{format_bytes(self.ledger.budget_bytes)} that there are for all requests: lower n or max_tokens",
                param="n",
            )
        try:
            self._held[name] = self.ledger.reserve(name, needed)
            if num_pooled:
                self._pool(name, num_pooled)
        except OutOfMemoryError as error:
            self.release(name)
            raise OverloadedError(
                "the requests that run or wait fill the memory there is for them: try again later",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error

    def release(self, request_id: str) -> None:
        """Give back what a request was charged, if anything."""
        held = self._held.pop(request_id, None)
        if held is not None:
            held.release()
        if self._pooled_tokens.pop(request_id, 0):
            self._hidden.resize(self._hidden_bytes(0))

    def _pool(self, name: str, num_tokens: int) -> None:
        self._hidden.resize(self._hidden_bytes(num_tokens))
        self._pooled_tokens[name] = num_tokens

    def _hidden_bytes(self, more_tokens: int) -> int:
        """Return what a step's result takes with the states of all pooled requests, and `more_tokens`."""
        num_tokens = sum(self._pooled_tokens.values()) + more_tokens
        return hidden_bytes(min(num_tokens, self._limits.step_tokens), self._limits.hidden_size)

    def _check_pooled(self, needed: int, num_tokens: int) -> None:
        hidden = hidden_bytes(min(num_tokens, self._limits.step_tokens), self._limits.hidden_size)
        if needed + hidden > self.ledger.budget_bytes:
            raise InvalidRequestError(
                f"the hidden states of {num_tokens} tokens take {format_bytes(hidden)} of the "
                f"{format_bytes(self.ledger.budget_bytes)} that there are for all requests: send shorter input, or use "
                "pooling last",
                param="input",
            )
