"""How far a choice can be stretched within a budget."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.memory.runtime import BLOCK_INDEX_BYTES
from openautoglm.planner.price import Choice, Pricer, largest_peak_bytes
from openautoglm.spec.plan import BLOCK_TOKENS

MAX_COUNTED_CONCURRENCY = 4096


def largest_context(pricer: Pricer, choice: Choice, budget_bytes: int) -> int:
    """Return the largest context at the choice's concurrency, at most the model's positions; 0 if none fits."""
    max_positions, block_bytes = pricer.spec.max_positions, pricer.block_bytes(choice.formats) + BLOCK_INDEX_BYTES
    short = replace(choice, context_tokens=1)
    if not pricer.fits(short, budget_bytes):
        return 0
    # Slices of a load share the room that the pool takes later, so the pool may grow into theirs first.
    shared_bytes = pricer.loading_excess(short)
    unused_bytes = largest_peak_bytes(budget_bytes) - pricer.breakdown(short).peak_bytes + shared_bytes
    num_blocks = short.num_blocks + unused_bytes // block_bytes
    return max(0, min(max_positions, (num_blocks - choice.pinned_blocks) // choice.concurrency * BLOCK_TOKENS))


def largest_concurrency(pricer: Pricer, choice: Choice, budget_bytes: int, *, fixed_chunk: bool = False) -> int:
    """Return the most sequences of the choice's context that fit, at most MAX_COUNTED_CONCURRENCY; 0 if none does.

    More sequences than the step has rows widen the step, and with it the workspace, unless the chunk is fixed.
    """
    low, high = 0, MAX_COUNTED_CONCURRENCY
    while low < high:
        middle = (low + high + 1) // 2
        if pricer.fits(with_concurrency(choice, middle, fixed_chunk=fixed_chunk), budget_bytes):
            low = middle
        else:
            high = middle - 1
    return low


def with_concurrency(choice: Choice, concurrency: int, *, fixed_chunk: bool = False) -> Choice:
    """Return the choice for another number of sequences, its step as wide as they need."""
    if fixed_chunk:
        rows = min(choice.max_step_tokens, max(choice.max_step_rows, concurrency))
        return replace(choice, concurrency=concurrency, max_step_rows=rows)
    rows = max(choice.max_step_rows, concurrency)
    return replace(
        choice, concurrency=concurrency, max_step_rows=rows, max_step_tokens=max(choice.max_step_tokens, rows)
    )
