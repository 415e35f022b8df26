"""What is told of requests and memory afterwards: values that cross the socket and end in answers. No prompt text."""

from __future__ import annotations

import msgspec


class ChoiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One choice: how it ended (None while it lives), and its seconds, which add up to its whole time.

    `preempted_seconds` and `spilled_seconds` run from the loss of its blocks to its next token, recomputing and reading
    back included.
    """

    choice: int
    finish_reason: str | None
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preempted_seconds: float
    spilled_seconds: float
    num_preemptions: int
    num_spills: int


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request's time went and which rungs of the ladder it met, mildest first.

    `error` says why it failed, if it did; `deadline_seconds` is what its client asked for, counted from its arrival.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    total_seconds: float
    rungs: tuple[str, ...]
    choices: tuple[ChoiceRecord, ...]
    deadline_seconds: float | None = None
    error: str | None = None


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The budget, what takes it, and the ladder.

    `budget_bytes` bounds the process tree now, `planned_bytes` is what the load was planned with. `tree_bytes` is what
    the tree takes, `ledger` what is charged for what. `pool_blocks` are there now, of `planned_blocks` at load and
    `max_blocks` at most; `pool_target_blocks` is where the pool is heading. Pressures are 0 when all is well, 1 when
    nothing is left. `transitions` counts how often each rung was entered.
    """

    budget_bytes: int
    planned_bytes: int
    tree_bytes: int
    ledger: dict[str, int]
    pool_blocks: int
    pool_target_blocks: int
    planned_blocks: int
    max_blocks: int
    block_bytes: int
    step_tokens: int
    rung: str
    block_pressure: float
    byte_pressure: float
    tightest: str
    transitions: dict[str, int]
