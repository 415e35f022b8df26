"""The executor boundary: what the engine sends for one step and what comes back.

Everything that crosses is plain, serialisable arrays, so that an executor may live in this process, on a device, or
behind a socket. Shapes: T tokens of the step, R rows (sequences taking part), S sampled positions, L positions whose
logits are wanted, V vocabulary, B blocks of the longest table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openautoglm.spec.arch import ArchSpec

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
UInt64 = NDArray[np.uint64]
UInt32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """What to draw, one entry per sampled position (S in all), as parallel arrays.

    `token_indices` point into the step's T tokens. A draw is keyed by (seed, choice, position), so it does not
    depend on the batch. Histories (for penalties) are flattened: row s owns
    history_tokens[history_offsets[s]:history_offsets[s+1]], of which the first history_prompt_lengths[s] are the
    prompt; rows without penalties may own none. Biases are flattened in the same way; -inf bans a token.
    `allowed_tokens` is a grammar bit mask [S, ceil(V/32)] or None. `num_logprobs` is -1 for none, k for the k best.
    """

    token_indices: Int32
    temperatures: Float32
    top_ks: Int32
    top_ps: Float32
    min_ps: Float32
    repetition_penalties: Float32
    frequency_penalties: Float32
    presence_penalties: Float32
    seeds: UInt64
    choices: Int32
    positions: Int32
    num_logprobs: Int32
    history_offsets: Int32
    history_tokens: Int32
    history_prompt_lengths: Int32
    bias_offsets: Int32
    bias_tokens: Int32
    bias_values: Float32
    allowed_tokens: UInt32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step for a whole batch.

    Row r owns tokens[row_offsets[r]:row_offsets[r+1]] at the given positions; its KV lives in the blocks of
    block_tables[group][r] (int32 [R, B] per cache group, unused entries -1). `embeddings` [T, hidden] replaces the
    token lookup where given (vision). Positions are [T], or [3, T] for M-RoPE. `adapter_slots` is -1 for none.
    """

    tokens: Int32
    positions: Int32
    row_offsets: Int32
    block_tables: tuple[Int32, ...]
    sample: SampleBatch | None = None
    logit_indices: Int32 | None = None
    hidden_indices: Int32 | None = None
    embeddings: Float32 | None = None
    adapter_slots: Int32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The step's results: 0..k tokens per sampled position (k = 1 without speculation).

    `tokens` is [S, k] with `num_tokens` [S] valid per row. `logprobs` [S] is the chosen token's log-softmax of raw
    logits (0 where not asked). `top_tokens`/`top_logprobs` are [S, max(num_logprobs)], padded with -1.
    `logits` is [L, V] for `logit_indices`; `hidden` is [H, hidden] for `hidden_indices` (after the final norm).
    """

    tokens: Int32
    num_tokens: Int32
    logprobs: Float32
    top_tokens: Int32
    top_logprobs: Float32
    logits: Float32 | None = None
    hidden: Float32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share one block table."""

    layers: tuple[int, ...]
    block_tokens: int
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorLayout:
    """Limits of a loaded executor, as they are now; the pool can have up to `max_blocks` blocks.

    `hidden_size` is 0 for one that gives no hidden states.
    """

    groups: tuple[CacheGroup, ...]
    num_blocks: int
    max_blocks: int
    max_step_tokens: int
    max_step_rows: int
    vocab_size: int
    hidden_size: int = 0


class StepHandle(Protocol):
    """A step in flight."""

    def result(self) -> StepResult:
        """Wait for the step; raise `OutOfMemoryError` or `EngineError` if it failed."""
        ...


class Executor(Protocol):
    """Runs steps. `supports` is callable before loading anything."""

    @staticmethod
    def supports(spec: ArchSpec) -> tuple[str, ...]:
        """Return why `spec` cannot run here, one feature a line; empty when it can."""
        ...

    def layout(self) -> ExecutorLayout:
        """Return the limits that the engine schedules within."""
        ...

    def submit(self, batch: StepBatch) -> StepHandle:
        """Start a step; several may be in flight; results come in order of submission."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks (source, destination) of every layer, before the next step."""
        ...

    def export_blocks(self, blocks: Sequence[int]) -> bytes:
        """Return the bytes of blocks, in order."""
        ...

    def import_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Restore bytes taken by `export_blocks`."""
        ...

    def resize_blocks(self, num_blocks: int) -> int:
        """Have `num_blocks` KV blocks from the next step on: 1 to `max_blocks` of the layout, else `ValueError`.

        Blocks from `num_blocks` on are lost, the others keep their contents. Growth is charged before it is taken;
        raises `OutOfMemoryError`, changing nothing, if it is refused. Returns the bytes given back to the system.
        """
        ...

    def limit_step_tokens(self, num_tokens: int) -> int:
        """Refuse steps of more than `num_tokens` tokens from now on, and give back memory that only they need.

        From 1 to the number at load, else `ValueError`; a larger number takes the memory again, charged first, and may
        raise `OutOfMemoryError`, changing nothing. Returns the bytes given back to the system.
        """
        ...

    def trim(self, live_blocks: Sequence[int]) -> int:
        """Give memory of slabs that hold none of `live_blocks` back to the system; return the bytes given.

        The contents of every block in those slabs are lost; the blocks stay usable and take memory again when written.
        """
        ...

    def determinism(self) -> str:
        """Return the fingerprint under which equal requests give equal bytes."""
        ...

    def close(self) -> None:
        """Stop threads and free everything; safe to call twice."""
        ...
