"""`StepTable`: what steps of a machine take, measured at several sizes, for simulations.

A step of few tokens takes as long as reading the weights, one of many as long as its arithmetic, and kernels change in
between; so the time is piecewise linear in the number of tokens, and linear in the rest of the load:

    seconds = interpolated(tokens) + per_row * (rows - 1) + per_key * keys + per_pair * pairs
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from openautoglm.errors import ConfigError
from openautoglm.spec.step_cost import StepLoad


class StepTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds[i]` is what a row of `tokens[i]` tokens takes; beyond the last it goes on as between the last two."""

    tokens: tuple[int, ...]
    token_seconds: tuple[float, ...]
    row_seconds: float
    key_seconds: float
    pair_seconds: float

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what cannot be interpolated."""
        numbers = (*self.token_seconds, self.row_seconds, self.key_seconds, self.pair_seconds)
        if len(self.tokens) < 2 or len(self.tokens) != len(self.token_seconds) or min(numbers) < 0:
            raise ConfigError("a table of step times needs two sizes or more, each with a time of 0 or more")
        if self.tokens[0] < 1 or any(low >= high for low, high in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ConfigError(f"the sizes of a table of step times must grow from 1 or more, got {self.tokens[:8]}")

    def seconds(self, load: StepLoad) -> float:
        """Return what a step takes."""
        count = load.num_prompt_tokens + load.num_rows
        index = min(max(bisect_right(self.tokens, count) - 1, 0), len(self.tokens) - 2)
        low, high = self.tokens[index], self.tokens[index + 1]
        share = max(0.0, (count - low) / (high - low))
        begin, end = self.token_seconds[index], self.token_seconds[index + 1]
        return (
            begin
            + share * (end - begin)
            + self.row_seconds * (load.num_rows - 1)
            + self.key_seconds * load.num_keys
            + self.pair_seconds * load.num_pairs
        )


def fit_step_table(tokens: Sequence[int], steps: Sequence[tuple[StepLoad, float]]) -> StepTable:
    """Return the table with the sizes `tokens` whose relative errors over measured steps are least.

    No time is negative. Raises `ConfigError` where a size of the table was not met by any step nearby.
    """
    terms = np.array([_terms(tokens, load) for load, _ in steps])
    seconds = np.array([value for _, value in steps])
    values = _nonnegative(terms / seconds[:, None])
    missing = [size for size, column in zip(tokens, terms.T, strict=False) if not column.any()]
    if missing:
        raise ConfigError(f"no step of about {missing[0]} tokens was measured: measure one, or leave the size out")
    found = [float(value) for value in values]
    return StepTable(
        tokens=tuple(tokens),
        token_seconds=tuple(found[: len(tokens)]),
        row_seconds=found[-3],
        key_seconds=found[-2],
        pair_seconds=found[-1],
    )


def _terms(tokens: Sequence[int], load: StepLoad) -> list[float]:
    """Return what `seconds` multiplies each number of a table with."""
    count = load.num_prompt_tokens + load.num_rows
    hats = np.interp(count, tokens, np.arange(len(tokens)))
    index = min(int(hats), len(tokens) - 2)
    weights = [0.0] * len(tokens)
    weights[index], weights[index + 1] = 1 - (float(hats) - index), float(hats) - index
    return [*weights, load.num_rows - 1.0, float(load.num_keys), float(load.num_pairs)]


def _nonnegative(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the numbers, none below 0, with which every row of terms comes nearest to 1."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    kept = list(range(terms.shape[1]))
    values = np.zeros(terms.shape[1])
    while kept:
        solved = np.linalg.lstsq(terms[:, kept] / scale[kept], np.ones(len(terms)), rcond=None)[0]
        if solved.min() >= 0:
            values[kept] = solved / scale[kept]
            break
        # Nothing takes less than no time: the others must do without the one that is furthest below.
        del kept[int(solved.argmin())]
    return values
