"""Deadlines: whether a request can still end in time, and which have run out.

    a step of T prompt tokens and R decoding rows takes about   base + T * per_prompt_token + R * per_row   seconds

learned from the steps themselves (costs.py). A waiting request is started only if it can still end in time, and
if everybody that runs and could end in time still does with it; one that cannot end in time even alone is told so.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Items
from dataclasses import dataclass

from openautoglm.engine.request import Request, Sequence, SequenceState


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
