"""Scores text with an executor: log-likelihoods, bits per byte, and the divergence between two loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from openautoglm.errors import ContextOverflowError
from openautoglm.executor.protocol import Executor, Float32, StepBatch

BITS_PER_NAT = 1.4426950408889634
# Rows of logits asked for at once: bounds the result array to this many times the vocabulary.
LOGIT_ROWS = 64


def stream_logits(executor: Executor, tokens: Sequence[int]) -> Iterator[Float32]:
    """Yield the logits [rows, V] of every position of one sequence, in order, at most LOGIT_ROWS rows at a time.

    Uses the executor's KV blocks from 0 on: nothing else may be running. Raises `ContextOverflowError` when the pool
    is smaller than the sequence. Peak bytes: LOGIT_ROWS * V * 4 per yield.
    """
    layout = executor.layout()
    group = layout.groups[0]
    num_blocks = -(-len(tokens) // group.block_tokens)
    if num_blocks > layout.num_blocks:
        raise ContextOverflowError(
            f"{len(tokens)} tokens need {num_blocks} KV blocks and the pool has {layout.num_blocks}: "
            "score a shorter text or plan a longer context"
        )
    table = np.arange(num_blocks, dtype=np.int32)[None, :]
    ids = np.asarray(tokens, dtype=np.int32)
    rows = min(LOGIT_ROWS, layout.max_step_tokens)
    for begin in range(0, len(ids), rows):
        chunk = ids[begin : begin + rows]
        batch = StepBatch(
            tokens=chunk,
            positions=np.arange(begin, begin + len(chunk), dtype=np.int32),
            row_offsets=np.array([0, len(chunk)], dtype=np.int32),
            block_tables=tuple(table for _ in layout.groups),
            logit_indices=np.arange(len(chunk), dtype=np.int32),
        )
        logits = executor.submit(batch).result().logits
        assert logits is not None
        yield logits


def token_nats(executor: Executor, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Return the negative log-likelihood, in nats, of tokens[1:] given what stands before each."""
    nats: list[NDArray[np.float64]] = []
    ids = np.asarray(tokens, dtype=np.int64)
    position = 0
    for logits in stream_logits(executor, tokens):
        wanted = ids[position + 1 : position + 1 + len(logits)]
        scores = log_softmax(logits[: len(wanted)])
        nats.append(-scores[np.arange(len(wanted)), wanted])
        position += len(logits)
    return np.concatenate(nats)


def bits_per_byte(executor: Executor, tokens: Sequence[int], num_bytes: int) -> float:
    """Return the bits that the model needs per byte of a text of `num_bytes` tokenised to `tokens`."""
    return float(token_nats(executor, tokens).sum() * BITS_PER_NAT / num_bytes)


def mean_divergence(reference: Executor, candidate: Executor, tokens: Sequence[int]) -> float:
    """Return the mean KL(reference || candidate) over all positions, in nats per token."""
    total = 0.0
    for left, right in zip(stream_logits(reference, tokens), stream_logits(candidate, tokens), strict=True):
        expected, got = log_softmax(left), log_softmax(right)
        total += float((np.exp(expected) * (expected - got)).sum())
    return total / len(tokens)


def log_softmax(logits: Float32) -> NDArray[np.float64]:
    """Return the log-softmax of each row in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
