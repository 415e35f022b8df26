"""What a user wants from a plan; None means: choose for me."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.spec.formats import ActivationScale, AttentionArithmetic, NumberFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Wishes for a plan. What is set is never changed in silence; what is None is chosen and explained.

    `memory_bytes` is the budget of the whole process tree. `context_tokens` is per sequence, `concurrency` the number
    of sequences that must fit at that context at once. `chunk_tokens` bounds the tokens of one step. `kv` is the format
    of the KV cache: None is bf16, or f32 with f32 weights.
    """

    memory_bytes: int | None = None
    context_tokens: int | None = None
    concurrency: int | None = None
    quant: NumberFormat | None = None
    group: int | None = None
    activations: ActivationScale = ActivationScale.GROUP
    attention: AttentionArithmetic = AttentionArithmetic.FASTEST
    kv: NumberFormat | None = None
    chunk_tokens: int | None = None
    num_threads: int | None = None
