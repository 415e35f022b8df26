"""What a choice of settings costs: a pure function of the architecture and the choice."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.memory.kv import kv_block_bytes
from openautoglm.memory.runtime import runtime_bytes
from openautoglm.memory.weights import WeightBytes, weight_bytes
from openautoglm.memory.workspace import workspace_bytes
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.plan import BLOCK_TOKENS, Breakdown
from openautoglm.units import MIB

MIN_HEADROOM_BYTES = 64 * MIB
HEADROOM_SHARE = 50  # one part in 50: 2 %
SPARE_BLOCKS = 1  # target of a copy-on-write while every sequence holds its whole context


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings that have a price."""

    formats: ModelFormats
    context_tokens: int
    concurrency: int
    max_step_tokens: int
    max_step_rows: int
    num_threads: int

    @property
    def num_blocks(self) -> int:
        """KV blocks for every sequence at its whole context, and the spare one."""
        return self.concurrency * -(-self.context_tokens // BLOCK_TOKENS) + SPARE_BLOCKS


def headroom_bytes(budget_bytes: int) -> int:
    """Return what stays free on purpose: 2 % of the budget, at least 64 MiB."""
    return max(MIN_HEADROOM_BYTES, budget_bytes // HEADROOM_SHARE)


def needed_budget_bytes(peak_bytes: int) -> int:
    """Return the least budget that holds a predicted peak and the headroom of that budget."""
    by_minimum = peak_bytes + MIN_HEADROOM_BYTES
    if headroom_bytes(by_minimum) == MIN_HEADROOM_BYTES:
        return by_minimum
    # budget - budget//50 >= peak; solved without floats, exact for every integer
    budget = peak_bytes * HEADROOM_SHARE // (HEADROOM_SHARE - 1)
    while budget - headroom_bytes(budget) < peak_bytes:
        budget += 1
    return budget


class Pricer:
    """Prices of one architecture; weights per format are computed once (a large model has thousands of matrices)."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self._weights: dict[ModelFormats, WeightBytes] = {}
        self._block_bytes: dict[ModelFormats, int] = {}

    def block_bytes(self, formats: ModelFormats) -> int:
        """Return the bytes of one KV block over all layers."""
        if formats not in self._block_bytes:
            self._block_bytes[formats] = kv_block_bytes(self.spec, formats.kv)
        return self._block_bytes[formats]

    def breakdown(self, choice: Choice, budget_bytes: int) -> Breakdown:
        """Return the bytes of every component of `choice`, headroom as a budget asks for it."""
        formats = choice.formats
        if formats not in self._weights:
            self._weights[formats] = weight_bytes(self.spec, formats)
        weights = self._weights[formats]
        return Breakdown(
            layer_weight_bytes=weights.layers,
            head_weight_bytes=weights.head,
            embedding_weight_bytes=weights.embedding,
            norm_bytes=weights.norms,
            kv_bytes=choice.num_blocks * self.block_bytes(formats),
            workspace_bytes=workspace_bytes(
                self.spec,
                formats,
                max_step_tokens=choice.max_step_tokens,
                max_step_rows=choice.max_step_rows,
                num_threads=choice.num_threads,
            ),
            runtime_bytes=runtime_bytes(self.spec.vocab_size, choice.num_threads),
            headroom_bytes=headroom_bytes(budget_bytes),
        )

    def peak_bytes(self, choice: Choice) -> int:
        """Return the predicted peak, headroom not counted."""
        return self.breakdown(choice, 0).peak_bytes

    def fits(self, choice: Choice, budget_bytes: int) -> bool:
        """Return whether the choice and the budget's headroom fit the budget."""
        return self.breakdown(choice, budget_bytes).total_bytes <= budget_bytes
