"""Embeddings: the final hidden states of prompts, pooled as steps compute them.

A request with a `Pooling` is one whose only token nobody reads: it waits, runs, is preempted and ends like any other,
and its last event carries the embedding. MEAN sums every position once, in order, whatever the chunks, so its prompt is
not taken from the prefix cache; states that were summed before a preemption are passed over after it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openautoglm.engine.client import Pooling
from openautoglm.executor.protocol import Float32

_FLOAT32_BYTES, _FLOAT64_BYTES = 4, 8


class Pooled:
    """What one prompt's hidden states have come to."""

    __slots__ = ("_num_taken", "_sum", "pooling")

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._num_taken = 0
        self._sum: NDArray[np.float64] | None = None

    def wanted(self, begin: int, end: int, *, last: bool) -> range:
        """Return which of the positions [begin, end) are needed; `last`: they reach the prompt's end."""
        if self.pooling is Pooling.LAST:
            return range(end - 1, end) if last else range(0)
        return range(max(begin, self._num_taken), max(end, self._num_taken))

    def take(self, positions: range, hidden: Float32) -> None:
        """Add the states [len(positions), hidden] of such positions, one after the other: no sum depends on chunks."""
        for state in hidden:
            if self._sum is None:
                self._sum = state.astype(np.float64)
            else:
                self._sum += state
        self._num_taken = max(self._num_taken, positions.stop)

    def embedding(self) -> bytes:
        """Return the unit vector as little-endian float32; empty where the states are no numbers, or all zero."""
        assert self._sum is not None
        length = float(np.linalg.norm(self._sum))
        if not np.isfinite(length) or length == 0.0:
            return b""
        return (self._sum / length).astype("<f4").tobytes()


def pooled_bytes(hidden_size: int) -> int:
    """Return what a pooled request holds beside what every request does: its sum, a copy of it, its vector."""
    return hidden_size * (2 * _FLOAT64_BYTES + _FLOAT32_BYTES)


def hidden_bytes(num_tokens: int, hidden_size: int) -> int:
    """Return what a step's result takes that has the hidden states of so many tokens."""
    return num_tokens * hidden_size * _FLOAT32_BYTES
