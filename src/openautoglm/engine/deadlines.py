"""Deadlines: what a step costs here, whether a request can still end in time, and which have run out.

    a step of T prompt tokens and R decoding rows takes about   base + T * per_prompt_token + R * per_row   seconds

learned from the steps themselves. A waiting request is started only if it can still end in time, and if everybody
that runs and could end in time still does with it; one that cannot end in time even alone is told so at once.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from openautoglm.engine.request import Request, Sequence, SequenceState

# Steps whose weight in the estimate has fallen to 1/e.
MEMORY_STEPS = 200
# Nobody is given up for a price from fewer steps.
LEAST_STEPS = 8


class StepCosts:
    """Least squares over the last steps, older ones weighing less; a few multiplications per step."""

    __slots__ = ("_count", "_p", "_pp", "_pr", "_pt", "_r", "_rr", "_rt", "_solved", "_t", "_w", "num_steps")

    def __init__(self) -> None:
        self._w = self._p = self._r = self._t = self._pp = self._pr = self._rr = self._pt = self._rt = 0.0
        self._solved: StepPrice | None = None
        self.num_steps = 0

    def add(self, num_prompt_tokens: int, num_rows: int, seconds: float) -> None:
        """Take note of a step."""
        keep = 1 - 1 / MEMORY_STEPS
        p, r, t = float(num_prompt_tokens), float(num_rows), seconds
        self._w = self._w * keep + 1
        self._p = self._p * keep + p
        self._r = self._r * keep + r
        self._t = self._t * keep + t
        self._pp = self._pp * keep + p * p
        self._pr = self._pr * keep + p * r
        self._rr = self._rr * keep + r * r
        self._pt = self._pt * keep + p * t
        self._rt = self._rt * keep + r * t
        self._solved = None
        self.num_steps += 1

    def price(self) -> StepPrice | None:
        """Return what steps cost now; None while too few have been seen to give anybody up for it."""
        return self.guess() if self.num_steps >= LEAST_STEPS else None

    def guess(self) -> StepPrice | None:
        """Return what steps seem to cost, from the first step on: enough to let somebody wait for it."""
        if self._solved is None and self.num_steps:
            self._solved = self._solve()
        return self._solved

    def _solve(self) -> StepPrice:
        # In terms of all tokens and what a row costs more than a token. A trace of damping keeps columns that never
        # varied at 0 instead of at anything, that of the tokens least: the first step is all tokens.
        tokens, tokens_tokens = self._p + self._r, self._pp + 2 * self._pr + self._rr
        tokens_rows, tokens_time = self._pr + self._rr, self._pt + self._rt
        matrix = np.array(
            [[self._w, tokens, self._r], [tokens, tokens_tokens, tokens_rows], [self._r, tokens_rows, self._rr]]
        )
        scale = np.sqrt(np.maximum(np.diag(matrix), 1e-12))
        normal = matrix / np.outer(scale, scale) + np.diag([1e-6, 1e-9, 1e-6])
        base, token, more = np.linalg.solve(normal, np.array([self._t, tokens_time, self._rt]) / scale) / scale
        row = token + more
        return StepPrice(
            base_seconds=max(0.0, float(base)),
            prompt_token_seconds=max(0.0, float(token)),
            row_seconds=max(0.0, float(row)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrice:
    """What a step costs: `base_seconds` whatever it computes, and more for each prompt token and decoding row."""

    base_seconds: float
    prompt_token_seconds: float
    row_seconds: float

    def decode_seconds(self, num_rows: int) -> float:
        """Return the seconds of a step that decodes `num_rows` rows."""
        return self.base_seconds + num_rows * self.row_seconds

    def alone_seconds(self, work: Work) -> float:
        """Return the least time in which a choice can end, if nothing else runs."""
        return work.prompt_tokens * self.prompt_token_seconds + work.answer_tokens * self.decode_seconds(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left of a choice: prompt tokens to compute, answer tokens to draw, and when it must have ended."""

    prompt_tokens: int
    answer_tokens: int
    deadline_seconds: float | None


class Beside:
    """Works that run together from now on, laid out so that one more is judged in O(log n).

    All prompts first, then every step a token of each; n works in the order of their ends. One more work adds its own
    prompt, and a row to each step until it or the other ends:

        end of the i-th + prompt + row_seconds * min(answer of the i-th, its own answer)
    """

    __slots__ = ("_ends", "_freed", "_margin_after", "_margin_before", "_price", "_sums", "_tokens", "num_works")

    def __init__(
        self, works: Items[Work], price: StepPrice, now_seconds: float, *, num_blocks: Items[int] | None = None
    ) -> None:
        """Lay out `works`; `num_blocks` says how many blocks of KV cache each gives back at its end."""
        self._price = price
        self.num_works = count = len(works)
        order = sorted(range(count), key=lambda index: works[index].answer_tokens)
        seconds = now_seconds + sum(work.prompt_tokens for work in works) * price.prompt_token_seconds
        self._tokens: list[int] = []
        self._sums, self._freed, self._ends = [0], [0], [seconds]
        # What those that end before one more have to spare beside a row of its in each step, and those that end after.
        margins: list[float] = []
        self._margin_before = [math.inf]
        done_tokens = 0
        for position, index in enumerate(order):
            work = works[index]
            seconds += (work.answer_tokens - done_tokens) * price.decode_seconds(count - position)
            done_tokens = work.answer_tokens
            spare = math.inf if work.deadline_seconds is None else work.deadline_seconds - seconds
            margins.append(spare if spare >= 0 else math.inf)
            self._tokens.append(done_tokens)
            self._ends.append(seconds)
            self._sums.append(self._sums[-1] + done_tokens)
            self._freed.append(self._freed[-1] + (0 if num_blocks is None else num_blocks[index]))
            self._margin_before.append(min(self._margin_before[-1], margins[-1] - price.row_seconds * done_tokens))
        self._margin_after = [math.inf]
        for margin in reversed(margins):
            self._margin_after.append(min(self._margin_after[-1], margin))
        self._margin_after.reverse()

    def end_seconds(self, work: Work, *, missing_blocks: int = 0) -> float:
        """Return when one more work ends, if it starts as soon as those that end have freed `missing_blocks`."""
        price, count = self._price, self.num_works
        begin = 0 if missing_blocks <= 0 else min(bisect_left(self._freed, missing_blocks), count)
        done_tokens = self._tokens[begin - 1] if begin else 0
        ended = bisect_right(self._tokens, done_tokens + work.answer_tokens)
        rows = self._sums[ended] - self._sums[begin] - (ended - begin) * done_tokens
        rows += (count - ended) * work.answer_tokens
        own_seconds = work.prompt_tokens * price.prompt_token_seconds + work.answer_tokens * price.decode_seconds(1)
        return self._ends[begin] + own_seconds + rows * price.row_seconds

    def makes_late(self, work: Work) -> bool:
        """Whether one more work that starts now makes another late that would be in time without it."""
        prompt_seconds = work.prompt_tokens * self._price.prompt_token_seconds
        position = bisect_right(self._tokens, work.answer_tokens)
        if self._margin_before[position] < prompt_seconds:
            return True
        return self._margin_after[position] < prompt_seconds + self._price.row_seconds * work.answer_tokens


class DeadlineQueue:
    """The deadlines of unfinished requests, the next one first. Finished ones are dropped as they come up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        """Return the number of deadlines kept, those of finished requests included."""
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Watch a request's deadline, if it has one."""
        if request.deadline_seconds is not None:
            heapq.heappush(self._heap, (request.arrival_seconds + request.deadline_seconds, request.arrival, request))

    def expired(self, now_seconds: float) -> list[Request]:
        """Take out the unfinished requests whose deadline has passed."""
        found = []
        while self._heap and (self._heap[0][0] <= now_seconds or self._heap[0][2].finished):
            request = heapq.heappop(self._heap)[2]
            if not request.finished:
                found.append(request)
        return found


def work_left(sequence: Sequence, expected_tokens: int) -> Work:
    """Return what is left of a choice whose answer is expected to have `expected_tokens` in all."""
    request = sequence.request
    decoding = sequence.num_pending == 1 and sequence.state is SequenceState.RUNNING
    deadline = request.deadline_seconds
    return Work(
        prompt_tokens=0 if decoding else sequence.num_pending,
        answer_tokens=max(1, expected_tokens - sequence.num_generated),
        deadline_seconds=None if deadline is None else request.arrival_seconds + deadline,
    )
