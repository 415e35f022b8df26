"""`StepCosts`: what steps cost here, learned from the steps themselves.

    a step takes about   base + tokens * per_token + rows * per_row + keys * per_key + pairs * per_pair   seconds

fitted so that relative errors are least: a step of 500 prompt tokens says no more than one of a single token, and one
that something else on the machine held up says little. What the steps do not tell apart stays where the prior has it.
"""

from __future__ import annotations

import numpy as np

from openautoglm.engine.deadlines import StepPrice
from openautoglm.engine.schedule import ScheduledRow
from openautoglm.spec.step_cost import StepCost, StepLoad

# Steps whose weight in the estimate has fallen to 1/e.
MEMORY_STEPS = 200
# Nobody is given up for a price from fewer steps.
LEAST_STEPS = 8
# Fresh steps after which the fit is made again where somebody asks, and where nobody does: a fit takes 0.1 ms.
_STEPS_PER_FIT = 8
_STEPS_UNASKED = 64
_KEEP = 1 - 1 / MEMORY_STEPS
# What columns that never varied are held to the prior with, that of all tokens least: the first step is all tokens.
_DAMPING = np.array([1e-6, 1e-9, 1e-6, 1e-6, 1e-6])
_PRIOR_DAMPING = np.array([1e-4, 1e-6, 1e-4, 1e-4, 1e-4])


def step_load(rows: list[ScheduledRow]) -> StepLoad:
    """Return what a step of these rows computes, drafted tokens included."""
    num_tokens = num_keys = num_pairs = 0
    for row in rows:
        begin, end = row.begin, row.end + len(row.draft)
        num_tokens += end - begin
        num_keys += end
        if end - begin > 1:
            num_pairs += (end - begin - 1) * (begin + end) // 2
    return StepLoad(
        num_prompt_tokens=num_tokens - len(rows), num_rows=len(rows), num_keys=num_keys, num_pairs=num_pairs
    )


class StepCosts:
    """Least squares over the last steps, older ones weighing less; some microseconds a step."""

    __slots__ = ("_fitted", "_fitted_at", "_gram", "_keys", "_pairs", "_prior", "_sums", "num_steps")

    def __init__(self, prior: StepCost | None = None) -> None:
        self._prior = prior
        self._gram = np.zeros((5, 5))
        self._sums = np.zeros(5)
        self._fitted = prior
        self._fitted_at = 0
        # Keys of a row, and pairs of a prompt token, as of late.
        self._keys = self._pairs = 0.0
        self.num_steps = 0

    def add(self, load: StepLoad, seconds: float) -> None:
        """Take note of a step."""
        prompt, rows = load.num_prompt_tokens, load.num_rows
        # Errors count relative to what was expected; a step that was held up counts for less, the more it was.
        cost = self._fit_again(_STEPS_UNASKED)
        scale = seconds if cost is None else min(max(cost.seconds(load), seconds / 2), seconds * 2)
        scale = max(scale, 1e-9)
        # All tokens, and what a row costs more than a token.
        terms = np.array((1.0, prompt + rows, rows, load.num_keys, load.num_pairs)) / scale
        self._gram *= _KEEP
        self._gram += np.outer(terms, terms)
        self._sums *= _KEEP
        self._sums += terms * (seconds / scale)
        self.num_steps += 1
        weight = max(1 / self.num_steps, 1 / MEMORY_STEPS)
        self._keys += (load.num_keys / rows - self._keys) * weight
        if prompt:
            self._pairs += (load.num_pairs / prompt - self._pairs) * weight

    def cost(self) -> StepCost | None:
        """Return what steps seem to cost, from the first one on (or before, if there is a prior)."""
        return self._fit_again(_STEPS_PER_FIT)

    def guess(self) -> StepPrice | None:
        """Return what steps cost with contexts as of late: enough to let somebody wait for it."""
        cost = self.cost()
        if cost is None:
            return None
        return StepPrice(
            base_seconds=cost.base_seconds,
            prompt_token_seconds=cost.prompt_token_seconds + cost.pair_seconds * self._pairs,
            row_seconds=cost.row_seconds + cost.key_seconds * self._keys,
        )

    def price(self) -> StepPrice | None:
        """Return `guess`; None while too few steps have been seen to give anybody up for it."""
        return self.guess() if self.num_steps >= LEAST_STEPS else None

    def _fit_again(self, most_steps: int) -> StepCost | None:
        """Return the fit, made anew after so many fresh steps, or when they are a quarter of all."""
        age = self.num_steps - self._fitted_at
        if age and age >= min(most_steps, self.num_steps // 4):
            self._fitted = self._fit()
            self._fitted_at = self.num_steps
        return self._fitted

    def _fit(self) -> StepCost:
        prior, damping = np.zeros(5), _DAMPING
        if self._prior is not None:
            one = self._prior
            more = one.row_seconds - one.prompt_token_seconds
            prior = np.array((one.base_seconds, one.prompt_token_seconds, more, one.key_seconds, one.pair_seconds))
            damping = _PRIOR_DAMPING
        scale = np.sqrt(np.maximum(self._gram.diagonal(), 1e-12))
        normal = self._gram / np.outer(scale, scale) + np.diag(damping)
        wanted = self._sums / scale + damping * prior * scale
        kept = np.arange(5)
        while True:
            values = np.zeros(5)
            values[kept] = np.linalg.solve(normal[np.ix_(kept, kept)], wanted[kept]) / scale[kept]
            negative = [index for index in kept if values[index] < 0 and index != 2]
            if not negative:
                break
            # Nothing takes less than no time: the others must do without it.
            kept = np.array([index for index in kept if index not in negative])
        base, token, more, key, pair = map(float, values)
        return StepCost(
            base_seconds=base,
            prompt_token_seconds=token,
            row_seconds=max(0.0, token + more),
            key_seconds=key,
            pair_seconds=pair,
        )
