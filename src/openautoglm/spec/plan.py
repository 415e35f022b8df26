"""A plan: every setting of a load, and the bytes each component takes."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.spec.formats import ModelFormats

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Bytes per component of host memory; `headroom_bytes` is left free on purpose and is part of the total."""

    layer_weight_bytes: int
    head_weight_bytes: int
    embedding_weight_bytes: int
    norm_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    headroom_bytes: int

    @property
    def weight_bytes(self) -> int:
        """All weights: layers, head, embeddings, norms and biases."""
        return self.layer_weight_bytes + self.head_weight_bytes + self.embedding_weight_bytes + self.norm_bytes

    @property
    def peak_bytes(self) -> int:
        """The predicted peak: everything but headroom."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.runtime_bytes

    @property
    def total_bytes(self) -> int:
        """The predicted peak and the headroom."""
        return self.peak_bytes + self.headroom_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of a load with their price. `runnable` False: described only, `unsupported` names why.

    `num_blocks` KV blocks of BLOCK_TOKENS tokens hold `concurrency` sequences of `context_tokens`.
    `max_step_tokens` and `max_step_rows` bound one step, and with it the workspace.
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
    unsupported: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def runnable(self) -> bool:
        """Whether the executor can run it."""
        return not self.unsupported
