"""A plan: every setting of a load, and the bytes each component takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.offload import OffloadPlan
from openautoglm.spec.spill import SpillTiers

BLOCK_TOKENS = 16


class Component(StrEnum):
    """What the parts of a breakdown belong to. The first five are host memory; the last two are not held by anybody:
    the kernel drops page cache when memory is short, and disk is another domain."""

    WEIGHTS = "weights"
    KV = "kv"
    WORKSPACE = "workspace"
    RUNTIME = "runtime"
    TIERS = "tiers"
    PAGE_CACHE = "page_cache"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A named share of a component; `detail` is its format, or what it holds."""

    component: Component
    name: str
    num_bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Bytes per component of host memory; `headroom_bytes` is left free on purpose and is part of the total.

    `tier_bytes` is what prefix and spill tiers keep in host memory beside the KV pool. `parts` split weights, KV cache,
    workspace and runtime further, and add what a load leaves in the page cache and on disk. Weights are those in
    memory; `ring_bytes` is what weights on disk are read into.
    """

    layer_weight_bytes: int
    head_weight_bytes: int
    embedding_weight_bytes: int
    norm_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    headroom_bytes: int
    tier_bytes: int = 0
    ring_bytes: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """All weights in memory: layers, head, embeddings, norms and biases."""
        return self.layer_weight_bytes + self.head_weight_bytes + self.embedding_weight_bytes + self.norm_bytes

    @property
    def peak_bytes(self) -> int:
        """The predicted peak: everything but headroom."""
        beside = self.ring_bytes + self.tier_bytes
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.runtime_bytes + beside

    @property
    def total_bytes(self) -> int:
        """The predicted peak and the headroom."""
        return self.peak_bytes + self.headroom_bytes

    def parts_of(self, component: Component) -> tuple[Part, ...]:
        """Return the parts of one component, in the order in which they are shown."""
        return tuple(part for part in self.parts if part.component is component)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of a load with their price. `runnable` False: described only, `unsupported` names why.

    `num_blocks` KV blocks of BLOCK_TOKENS tokens hold `concurrency` sequences of `context_tokens`, and `pinned_blocks`
    of prompts that stay.
    `max_step_tokens` and `max_step_rows` bound one step, and with it the workspace. `offload`: layers on disk.
    `spill`: room for KV blocks beside the pool.
    """

    model: str
    family: str
    formats: ModelFormats
    num_parameters: int
    num_active_parameters: int
    context_tokens: int
    max_context_tokens: int
    concurrency: int
    max_concurrency: int
    num_blocks: int
    max_step_tokens: int
    max_step_rows: int
    num_threads: int
    budget_bytes: int
    breakdown: Breakdown
    offload: OffloadPlan | None = None
    spill: SpillTiers = field(default_factory=SpillTiers)
    pinned_blocks: int = 0
    unsupported: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def runnable(self) -> bool:
        """Whether the executor can run it."""
        return not self.unsupported
