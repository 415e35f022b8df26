"""What a user wants from a plan; None means: choose for me."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from openautoglm.spec.formats import ActivationScale, AttentionArithmetic, NumberFormat
from openautoglm.spec.offload import OffloadMode, Placement
from openautoglm.spec.spill import SpillTiers


class Objective(StrEnum):
    """What to favour where the user leaves a choice.

    Latency: few bytes per token and short steps. Throughput: as many sequences as fit, up to 64. Quality: the best
    format that leaves a usable context. Context: as many tokens as fit, for one sequence.
    """

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    QUALITY = "quality"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Wishes for a plan. What is set is never changed in silence; what is None is chosen and explained.

    `memory_bytes` is the budget of the whole process tree. `context_tokens` is per sequence, `concurrency` the number
    of sequences that must fit at that context at once. `chunk_tokens` bounds the tokens of one step. `kv` is the format
    of the KV cache. `objective` decides between candidates for what is None; without one, the defaults balance them.
    `offload` says when layers may stay on disk, `placement` which ones do or do not in any case, `offload_directory`
    where (None: with the packed weights of earlier loads). `spill` is room for KV blocks beside the pool,
    `pinned_blocks` are blocks of it that prompts which stay there take, on top of what sequences need.
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
    objective: Objective | None = None
    offload: OffloadMode = OffloadMode.AUTO
    placement: Placement = field(default_factory=Placement)
    offload_directory: str | None = None
    spill: SpillTiers = field(default_factory=SpillTiers)
    pinned_blocks: int = 0
