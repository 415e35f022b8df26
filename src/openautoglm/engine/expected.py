"""What running requests will probably need: answer lengths learned from those that ended, and the peak of blocks.

The worst case of a request decides only whether it can ever fit. Reserving it would leave most of the pool unused, as
answers are shorter than what they may be; what turns out longer than expected is made up for by preemption.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable

WINDOW_ANSWERS = 256
# Below this many answers nothing is known, and nothing is expected: preemption puts right what goes wrong.
LEAST_ANSWERS = 32


class AnswerLengths:
    """Lengths of the last answers, in tokens. A quantile of the longer ones is what a running one will come to."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def add(self, num_tokens: int) -> None:
        """Take note of an answer that ended by itself."""
        if len(self._recent) == WINDOW_ANSWERS:
            oldest = self._recent.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
        self._recent.append(num_tokens)
        insort(self._sorted, num_tokens)

    def expect(
        self, num_generated: int, max_tokens: int, *, quantile: float, least_answers: int = LEAST_ANSWERS
    ) -> int | None:
        """Return the whole length that an answer with `num_generated` tokens will probably have.

        At least one more token and at most `max_tokens`; None when fewer than `least_answers` are known. An answer
        longer than all before it may go on to the end.
        """
        if len(self._sorted) < least_answers:
            return None
        begin = bisect_right(self._sorted, num_generated)
        longer = len(self._sorted) - begin
        if not longer:
            return max_tokens
        return min(max(num_generated + 1, self._sorted[begin + int(quantile * (longer - 1))]), max_tokens)


def guess_length(num_generated: int, max_tokens: int) -> int:
    """Return the length that an answer may have where nothing is known of answers: every order of magnitude between
    what it has and what it may have is as likely, and this is the middle. At least one more token.
    """
    return min(max(num_generated + 1, int(math.sqrt(max(1, num_generated) * max_tokens))), max_tokens)


def peak_blocks(needs: Iterable[tuple[int, int]]) -> int:
    """Return the most blocks that sequences will hold at once, from (blocks now, blocks still to come) of each.

    All grow at one pace, and give everything back when they end: just before the k-th of them in order of what is left
    ends, it and those after it hold what they have now and as much growth as that one. (Gong et al., "Past-Future
    Scheduler for LLM Serving under SLA Guarantees", 2025, section 4.)
    """
    peak = held = 0
    for count, (now, growth) in enumerate(sorted(needs, key=_growth, reverse=True), start=1):
        held += now
        peak = max(peak, held + count * growth)
    return peak


def _growth(need: tuple[int, int]) -> int:
    return need[1]
