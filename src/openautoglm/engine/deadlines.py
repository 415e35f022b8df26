"""Deadlines: what a step costs here, whether a request can still end in time, and which have run out.

    a step of T prompt tokens and R decoding rows takes about   base + T * per_prompt_token + R * per_row   seconds

learned from the steps themselves. A waiting request is started only if it can still end in time, and if everybody
that runs and could end in time still does with it; one that cannot end in time even alone is told so at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from openautoglm.engine.request import Request, Sequence, SequenceState

# Steps whose weight in the estimate has fallen to 1/e.
MEMORY_STEPS = 200
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
        """Return what steps cost now; None while too few have been seen."""
        if self._solved is None and self.num_steps >= LEAST_STEPS:
            self._solved = self._solve()
        return self._solved

    def _solve(self) -> StepPrice:
        # A trace of damping keeps columns that never varied at 0 instead of at anything.
        matrix = np.array([[self._w, self._p, self._r], [self._p, self._pp, self._pr], [self._r, self._pr, self._rr]])
        scale = np.sqrt(np.maximum(np.diag(matrix), 1e-12))
        normal = matrix / np.outer(scale, scale) + 1e-6 * np.eye(3)
        base, token, row = np.linalg.solve(normal, np.array([self._t, self._pt, self._rt]) / scale) / scale
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


def late(works: Items[Work], price: StepPrice, now_seconds: float) -> set[int]:
    """Return the indices of the works that will end too late if all of them run together from now on."""
    time_seconds = now_seconds + sum(work.prompt_tokens for work in works) * price.prompt_token_seconds
    order = sorted(range(len(works)), key=lambda index: works[index].answer_tokens)
    too_late, done_tokens = set(), 0
    for position, index in enumerate(order):
        work = works[index]
        time_seconds += (work.answer_tokens - done_tokens) * price.decode_seconds(len(works) - position)
        done_tokens = work.answer_tokens
        if work.deadline_seconds is not None and time_seconds > work.deadline_seconds:
            too_late.add(index)
    return too_late


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
