"""Steps of random tokens for an executor: what an engine would send, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openautoglm.executor.protocol import SampleBatch, StepBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sequence's part of a step: its KV blocks, the tokens that it already has, and how many are new."""

    blocks: tuple[int, ...]
    num_cached: int
    num_new: int


def random_step(rows: Sequence[Row], *, vocab_size: int, seed: int, sample: bool) -> StepBatch:
    """Return a step of random tokens; with `sample`, the last token of every row draws greedily."""
    generator = np.random.default_rng(seed)
    num_tokens = sum(row.num_new for row in rows)
    offsets = np.cumsum([0, *(row.num_new for row in rows)]).astype(np.int32)
    positions = [np.arange(row.num_cached, row.num_cached + row.num_new, dtype=np.int32) for row in rows]
    table = np.full((len(rows), max(len(row.blocks) for row in rows)), -1, dtype=np.int32)
    for index, row in enumerate(rows):
        table[index, : len(row.blocks)] = row.blocks
    return StepBatch(
        tokens=generator.integers(0, vocab_size, num_tokens, dtype=np.int32),
        positions=np.concatenate(positions),
        row_offsets=offsets,
        block_tables=(table,),
        sample=greedy_samples(offsets[1:] - 1, [row.num_cached + row.num_new for row in rows]) if sample else None,
    )


def greedy_samples(token_indices: np.ndarray, positions: Sequence[int]) -> SampleBatch:
    """Return a greedy draw at each of the step's `token_indices` (int32 [S]), for the given positions."""
    count = len(positions)
    zeros, ones = np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.float32)
    return SampleBatch(
        token_indices=np.ascontiguousarray(token_indices, dtype=np.int32),
        temperatures=zeros,
        top_ks=np.zeros(count, dtype=np.int32),
        top_ps=ones,
        min_ps=zeros,
        repetition_penalties=ones,
        frequency_penalties=zeros,
        presence_penalties=zeros,
        seeds=np.zeros(count, dtype=np.uint64),
        choices=np.zeros(count, dtype=np.int32),
        positions=np.asarray(positions, dtype=np.int32),
        num_logprobs=np.full(count, -1, dtype=np.int32),
        history_offsets=np.zeros(count + 1, dtype=np.int32),
        history_tokens=np.zeros(0, dtype=np.int32),
        history_prompt_lengths=np.zeros(count, dtype=np.int32),
        bias_offsets=np.zeros(count + 1, dtype=np.int32),
        bias_tokens=np.zeros(0, dtype=np.int32),
        bias_values=np.zeros(0, dtype=np.float32),
    )
