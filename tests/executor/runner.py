"""Driving an executor by hand: sequences with their own blocks, steps of any rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from openautoglm.executor.native import NativeExecutor
from openautoglm.executor.protocol import Float32, SampleBatch, StepBatch, StepResult

BLOCK_TOKENS = 16


@dataclass(kw_only=True)
class Row:
    """Tokens of one sequence for one step, from position `begin` on; `blocks` hold the sequence's keys."""

    tokens: Sequence[int]
    blocks: Sequence[int]
    begin: int = 0


@dataclass(kw_only=True)
class Runner:
    """Builds batches that ask for the logits of every token."""

    executor: NativeExecutor
    results: list[StepResult] = field(default_factory=list)

    def step(self, rows: Sequence[Row], sample: SampleBatch | None = None) -> list[Float32]:
        """Run one step; return each row's logits [tokens, vocabulary]."""
        batch = make_batch(rows, sample)
        result = self.executor.submit(batch).result()
        self.results.append(result)
        assert result.logits is not None
        return np.split(result.logits, batch.row_offsets[1:-1])

    def run(self, tokens: Sequence[int], blocks: Sequence[int], chunk: int | None = None) -> Float32:
        """Run a sequence alone, in chunks; return its logits [tokens, vocabulary]."""
        size = chunk or len(tokens)
        parts = [
            self.step([Row(tokens=tokens[begin : begin + size], blocks=blocks, begin=begin)])[0]
            for begin in range(0, len(tokens), size)
        ]
        return np.concatenate(parts)


def make_batch(rows: Sequence[Row], sample: SampleBatch | None = None, *, logits: bool = True) -> StepBatch:
    """Return the batch of some rows."""
    offsets = np.cumsum([0, *(len(row.tokens) for row in rows)]).astype(np.int32)
    table = np.full((len(rows), max(len(row.blocks) for row in rows)), -1, dtype=np.int32)
    for index, row in enumerate(rows):
        table[index, : len(row.blocks)] = row.blocks
    positions = [np.arange(row.begin, row.begin + len(row.tokens)) for row in rows]
    return StepBatch(
        tokens=np.concatenate([np.asarray(row.tokens) for row in rows]).astype(np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        row_offsets=offsets,
        block_tables=(table,),
        sample=sample,
        logit_indices=np.arange(offsets[-1], dtype=np.int32) if logits else None,
    )


def make_samples(token_indices: Sequence[int], **columns: object) -> SampleBatch:
    """Return a sample batch: greedy without anything else, but for the columns that are given."""
    size = len(token_indices)

    def column(name: str, default: float, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(columns.pop(name, default), dtype=dtype), (size,)))

    def ragged(values: object, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        rows = [list(row) for row in values] if values is not None else [[] for _ in range(size)]
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        return offsets, np.array([value for row in rows for value in row], dtype=dtype)

    history_offsets, history_tokens = ragged(columns.pop("histories", None), np.int32)
    biases = columns.pop("biases", None)
    bias_offsets, bias_tokens = ragged(None if biases is None else [dict(row) for row in biases], np.int32)
    _, bias_values = ragged(None if biases is None else [dict(row).values() for row in biases], np.float32)
    batch = SampleBatch(
        token_indices=np.asarray(token_indices, dtype=np.int32),
        temperatures=column("temperatures", 0.0, np.float32),
        top_ks=column("top_ks", 0, np.int32),
        top_ps=column("top_ps", 1.0, np.float32),
        min_ps=column("min_ps", 0.0, np.float32),
        repetition_penalties=column("repetition_penalties", 1.0, np.float32),
        frequency_penalties=column("frequency_penalties", 0.0, np.float32),
        presence_penalties=column("presence_penalties", 0.0, np.float32),
        seeds=column("seeds", 0, np.uint64),
        choices=column("choices", 0, np.int32),
        positions=column("positions", 0, np.int32),
        num_logprobs=column("num_logprobs", -1, np.int32),
        history_offsets=history_offsets,
        history_tokens=history_tokens,
        history_prompt_lengths=column("history_prompt_lengths", 0, np.int32),
        bias_offsets=bias_offsets,
        bias_tokens=bias_tokens,
        bias_values=bias_values,
        allowed_tokens=columns.pop("allowed_tokens", None),
    )
    assert not columns, f"unknown columns {list(columns)}"
    return batch
