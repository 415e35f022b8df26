"""`Request` and `Sequence`: what the engine knows of a request, and of each of its n choices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from openautoglm.engine.output import ChoiceText
from openautoglm.engine.pooled import Pooled
from openautoglm.engine.timeline import Timeline
from openautoglm.spec.pressure import Rung
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import AGING_SECONDS, Queue, behind_seconds, queue_of
from openautoglm.text.grammar import Grammar

SPARE_TOKENS = 256
# The place of a request without a deadline, and of one whose deadline is later: nobody waits for ever.
PATIENCE_SECONDS = 60.0
FIRST_DRAFT_TOKENS = 4


class SequenceState(Enum):
    """Where a choice stands. HELD choices wait for the first one to compute the prompt that they share, COMPILING ones
    for their grammar, outside the scheduler.
    """

    COMPILING = "compiling"
    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True)
class Request:
    """One request while it lives; `sequences` holds its n choices.

    `eos_tokens` end a choice (empty when EOS is ignored), as do the request's own `stop_tokens`. `biases` are added to
    the logits of the given tokens; `early_biases` also ban the tokens that must not come before `min_tokens`.
    `num_cached_tokens` is the part of the prompt found in the cache on first admission. What happened to its choices
    when they were set back: blocks that were spilled and that came back, tokens that had to be computed again. Times
    are the engine's clock; `constraint_seconds` is how long it waited for its grammar, `mask_seconds` what following it
    took so far. `session` names what keeps its KV cache afterwards. `rungs` holds the rungs of the ladder that touched
    the request, a bit each.
    """

    request_id: str
    prompt: NDArray[np.int32]
    sampling: SamplingParams
    seed: int
    priority: int
    arrival: int
    root_key: bytes
    max_new_tokens: int
    eos_tokens: frozenset[int]
    stop_tokens: frozenset[int]
    biases: tuple[tuple[int, float], ...] = ()
    early_biases: tuple[tuple[int, float], ...] = ()
    sequences: list[Sequence] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_spilled_blocks: int = 0
    num_restored_blocks: int = 0
    num_recomputed_tokens: int = 0
    constraint_seconds: float = 0.0
    mask_seconds: float = 0.0
    arrival_seconds: float = field(default_factory=time.monotonic)
    start_seconds: float | None = None
    first_token_seconds: float | None = None
    end_seconds: float | None = None
    deadline_seconds: float | None = None
    session: bytes | None = None
    pooled: Pooled | None = None
    aging_seconds: float = AGING_SECONDS
    rungs: int = 0
    error: str | None = None

    def touch(self, rung: Rung) -> None:
        """Note that a rung of the ladder has touched the request."""
        self.rungs |= 1 << rung

    @property
    def queue(self) -> Queue:
        """Which queue it stands in."""
        return queue_of(self.priority)

    @property
    def place_seconds(self) -> float:
        """By when it should have ended, put back by its priority: the earliest is first."""
        deadline = PATIENCE_SECONDS if self.deadline_seconds is None else self.deadline_seconds
        return (
            self.arrival_seconds + min(deadline, PATIENCE_SECONDS) + behind_seconds(self.priority, self.aging_seconds)
        )

    @property
    def queue_seconds(self) -> float:
        """How long it waited for its first step; 0 until that is known."""
        return 0.0 if self.start_seconds is None else self.start_seconds - self.arrival_seconds

    @property
    def prefill_seconds(self) -> float:
        """From the first step to the first token; 0 until that is known."""
        if self.start_seconds is None or self.first_token_seconds is None:
            return 0.0
        return self.first_token_seconds - self.start_seconds

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def has_penalties(self) -> bool:
        """Whether drawing needs the tokens so far."""
        sampling = self.sampling
        return (
            sampling.repetition_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
        )

    @property
    def max_blocks(self) -> int:
        """KV blocks that a choice of full length takes."""
        return max(len(sequence.block_table) for sequence in self.sequences)

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return all(sequence.state is SequenceState.FINISHED for sequence in self.sequences)


class Sequence:
    """One choice: its tokens, how many of them have KV in the pool, and the blocks that hold it.

        tokens   | prompt ........ | generated ... |
                 | computed ............ | pending |      num_pending == 1: the choice is decoding
        blocks   | 16 | 16 | 16 | 16 |                    block i holds positions 16i to 16i+15

    After preemption `num_computed` is 0 and the generated tokens are computed again like a prompt, unless their blocks
    come back: `num_lost_tokens` had been computed, `spill_keys` name the blocks that hold them (see spill.py). At most
    `draft_tokens` are drafted at once, none before there are `draft_from` (see speculation.py).
    """

    __slots__ = (
        "_buffer",
        "block_table",
        "blocks",
        "choice",
        "draft_from",
        "draft_tokens",
        "finish_reason",
        "grammar",
        "keys",
        "num_admissions",
        "num_computed",
        "num_lost_tokens",
        "num_registered",
        "num_tokens",
        "order",
        "request",
        "rest_tokens",
        "spill_keys",
        "state",
        "text",
        "timeline",
    )

    def __init__(self, request: Request, choice: int, *, max_blocks: int, text: ChoiceText) -> None:
        self.request = request
        self.choice = choice
        self.order = (request.place_seconds, request.arrival, choice)
        self.state = SequenceState.HELD
        self.num_tokens = request.num_prompt_tokens
        self._buffer = np.empty(self.num_tokens + min(request.max_new_tokens, SPARE_TOKENS), dtype=np.int32)
        self._buffer[: self.num_tokens] = request.prompt
        self.num_computed = 0
        self.blocks: list[int] = []
        self.block_table: NDArray[np.int32] = np.empty(max_blocks, dtype=np.int32)
        self.keys: list[bytes] = [request.root_key]
        self.num_registered = 0
        self.num_admissions = 0
        self.num_lost_tokens = 0
        self.spill_keys: list[bytes] = []
        self.draft_tokens = FIRST_DRAFT_TOKENS
        self.draft_from = self.rest_tokens = 0
        self.text = text
        self.grammar: Grammar | None = None
        self.finish_reason: str | None = None
        self.timeline = Timeline(request.arrival_seconds)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - len(self.request.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens whose KV is still to be computed; at least 1 while the choice lives."""
        return self.num_tokens - self.num_computed

    def tokens(self, begin: int = 0, end: int | None = None) -> NDArray[np.int32]:
        """Return a view of tokens [begin, end)."""
        return self._buffer[begin : self.num_tokens if end is None else end]

    def append(self, token: int) -> None:
        """Add a generated token."""
        if self.num_tokens == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self.num_tokens] = token
        self.num_tokens += 1

    def attach(self, blocks: list[int]) -> None:
        """Append blocks to the table."""
        begin = len(self.blocks)
        self.blocks.extend(blocks)
        self.block_table[begin : len(self.blocks)] = blocks

    def relocate(self, new_places: Mapping[int, int]) -> None:
        """Follow blocks to where they were moved."""
        if not new_places.keys().isdisjoint(self.blocks):
            self.blocks = [new_places.get(block, block) for block in self.blocks]
            self.block_table[: len(self.blocks)] = self.blocks

    def detach(self) -> list[int]:
        """Give up all blocks and what was computed in them; return the blocks."""
        blocks, self.blocks = self.blocks, []
        self.num_computed = 0
        self.num_registered = 0
        return blocks
