"""`StepBudget`: how many prompt tokens may be computed beside running streams, so that their tokens keep coming.

A prompt is computed in pieces, each in a step with the next token of every stream; how long the step takes is what the
streams wait. A piece is as large as the target leaves room for, by what steps cost here:

    decoding rows alone + piece <= target * aim * care

`care` follows what came of it: it falls with each step that took longer than the target, and rises slowly else, so that
about one step in 200 is too long whatever the cost model gets wrong.
"""

from __future__ import annotations

import math

from openautoglm.engine.client import BudgetStatus
from openautoglm.engine.costs import StepCosts, step_load
from openautoglm.engine.request import Sequence
from openautoglm.engine.schedule import ScheduledRow
from openautoglm.spec.scheduling import SchedulingOptions

# Without a target, steps with a piece of a prompt may take so many times what the streams alone would take.
MOST_SLOWDOWN = 4.0
# A prompt always goes on by so many tokens: less would cost more steps than it spares.
LEAST_TOKENS = 16
# Nobody is served while a step without streams runs: it may take this share of the target for first tokens.
STEP_SHARE = 0.25
# Steps vary, and tokens reach their streams a moment after a step.
_AIM = 0.92
_TOO_LONG_SHARE = 1 / 200
_CARE_STEP = 0.05
_CARE_RANGE = (0.4, 1.6)
# What takes so many times longer than predicted was held up by something else.
_HELD_UP = 2.0


class StepBudget:
    """Limits the prompt tokens of a step. One thread only; another may read the counters."""

    def __init__(self, options: SchedulingOptions, costs: StepCosts) -> None:
        self._options = options
        self._costs = costs
        self._care = 1.0
        # Target, prediction, rows that decode and most tokens of the step that was limited last, until it is measured.
        self._watched: tuple[float, float, int, int] | None = None
        self.last_tokens = 0
        self.num_limited_steps = 0
        self.num_late_steps = 0

    def limit(self, rows: list[ScheduledRow], most_tokens: int, first: Sequence, now_seconds: float) -> int:
        """Return how many prompt tokens may join `rows`, which decode: 1 to `most_tokens`.

        `first` is the choice whose prompt comes first, running or waiting.
        """
        self._watched = None
        cost = self._costs.cost()
        if cost is None:
            return most_tokens
        alone = step_load(rows)
        alone_seconds = cost.seconds(alone) if rows else cost.base_seconds
        target = self._target(alone_seconds, streams=bool(rows))
        if target is None:
            return most_tokens
        # A piece is a row, whose last token looks at all before it and may draw one.
        row_seconds = cost.row_seconds - cost.prompt_token_seconds + cost.key_seconds * first.num_computed
        room = target * _AIM * self._care - alone_seconds - max(0.0, row_seconds)
        token = cost.prompt_token_seconds + cost.pair_seconds * first.num_computed + cost.key_seconds
        num_tokens = min(most_tokens, max(LEAST_TOKENS, _tokens_within(room, token, cost.pair_seconds)))
        if num_tokens == most_tokens or (rows and self._needs_more(first, num_tokens, target, now_seconds)):
            return most_tokens
        self.last_tokens = num_tokens
        self.num_limited_steps += 1
        if rows and num_tokens > LEAST_TOKENS:
            self._watched = (target, alone_seconds + num_tokens * token, len(rows), len(rows) + num_tokens)
        return num_tokens

    def observe(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Learn how long the step took that was limited last, which computed `num_tokens` of `num_rows` in all."""
        if self._watched is None:
            return
        target, predicted, num_decoding, most_tokens = self._watched
        self._watched = None
        if num_rows <= num_decoding:
            return  # no prompt found its place: what made the step longer, such as drafts, is not the budget's
        if seconds > target:
            self.num_late_steps += 1
            if seconds < _HELD_UP * predicted:
                self._care *= 1 - _CARE_STEP
        elif num_tokens == most_tokens:
            self._care *= 1 + _CARE_STEP * _TOO_LONG_SHARE * (10 if seconds < 0.8 * target else 1)
        low, high = _CARE_RANGE
        self._care = min(max(self._care, low), high)

    def status(self) -> BudgetStatus:
        """Return targets and counters."""
        return BudgetStatus(
            last_tokens=self.last_tokens,
            num_limited_steps=self.num_limited_steps,
            num_late_steps=self.num_late_steps,
            itl_seconds=self._options.itl_seconds,
            ttft_seconds=self._options.ttft_seconds,
        )

    def _target(self, alone_seconds: float, *, streams: bool) -> float | None:
        """Return how long a step may take; None for as long as it will."""
        options = self._options
        if not streams:
            return None if options.ttft_seconds is None else STEP_SHARE * options.ttft_seconds
        if options.itl_seconds is not None:
            return options.itl_seconds
        return MOST_SLOWDOWN * alone_seconds if options.eases_streams else None

    def _needs_more(self, first: Sequence, num_tokens: int, target: float, now_seconds: float) -> bool:
        """Whether streams that have no target of their own must wait longer, or a first token would come too late."""
        options = self._options
        if options.itl_seconds is not None or options.ttft_seconds is None:
            return False
        left_seconds = first.request.arrival_seconds + options.ttft_seconds - now_seconds
        return 0 < left_seconds < first.num_pending / num_tokens * target


def _tokens_within(seconds: float, token_seconds: float, pair_seconds: float) -> int:
    """Return the most tokens n with n * token + n^2 / 2 * pair within `seconds`."""
    if seconds <= 0:
        return 0
    if pair_seconds <= 0:
        return 1 << 30 if token_seconds <= 0 else int(seconds / token_seconds)
    root = math.sqrt(token_seconds * token_seconds + 2 * pair_seconds * seconds)
    return int((root - token_seconds) / pair_seconds)
