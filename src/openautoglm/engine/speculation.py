"""`PromptLookup`: several tokens in one pass, where a text repeats what it has said before.

The last tokens of a sequence are looked up in its own prompt and output; what followed them there is the draft of what
follows now. A step computes the draft's tokens beside the pending one and draws at every position as it would have
drawn there alone, with that position's own random number, penalties and bans. The drawn tokens are the answer: as long
as a draft said the same, the next draw stands on the right history; the first that differs is still right itself, and
what was computed behind it is written over later. So no byte of an answer depends on drafts.

    tokens     | prompt and output ........ x y z | p |          p: pending; x y z p were seen before,
    draft                                             a b c      followed by a b c
    drawn                                         a   b d        accepted: a b, and d is new

AUTO drafts while it pays: it compares tokens per second of steps with drafts and without, and asks less of sequences
whose drafts fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from openautoglm.engine.client import SpeculationStatus
from openautoglm.engine.logprobs import Logprobs, token_logprobs
from openautoglm.engine.request import Sequence, SequenceState
from openautoglm.engine.schedule import Schedule, ScheduledRow
from openautoglm.engine.scheduler import Scheduler
from openautoglm.executor.protocol import Int32, StepResult
from openautoglm.spec.reuse import Speculation

# A step with drafts has no more tokens than the head takes at once (memory/workspace.py), and few rows.
MOST_STEP_TOKENS = 32
MOST_ROWS = 8
LEAST_MATCH_TOKENS = 3
MOST_MATCH_TOKENS = 8
MOST_DRAFT_TOKENS = 15
# So far back a text is searched: it takes a few microseconds.
WINDOW_TOKENS = 1 << 14
# A sequence whose draft failed rests for so many tokens, twice as many with each failure in a row.
FIRST_REST_TOKENS = 4
MOST_REST_TOKENS = 64
# Histories for penalties are sent once for each position: of long ones fewer.
MOST_HISTORY_TOKENS = 1 << 16
# Speeds are compared once both are known from so many steps, with these shares of old ones kept.
LEAST_STEPS = 8
_KEEP = 1 - 1 / 64
# What no longer pays is tried again after so many steps.
STEPS_BEFORE_TRIAL = 64


@dataclass(slots=True)
class _Speed:
    """Tokens and seconds of steps, the older weighing less."""

    num_steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self.num_steps += 1
        self.tokens = self.tokens * _KEEP + num_tokens
        self.seconds = self.seconds * _KEEP + seconds

    @property
    def known(self) -> bool:
        return self.num_steps >= LEAST_STEPS

    def slower_than(self, other: _Speed) -> bool:
        return self.tokens * other.seconds < other.tokens * self.seconds


def find_draft(tokens: Int32, most_tokens: int) -> Int32 | None:
    """Return what followed the last place where the end of `tokens` stood before; None where there was no such place.

    At least LEAST_MATCH_TOKENS must agree; of several places, those that agree for longest, up to MOST_MATCH_TOKENS.
    A text that repeats itself with a short period is drafted to go on so. Peak bytes: nine times the window.
    """
    tokens = tokens[-WINDOW_TOKENS:]
    size = len(tokens)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    for depth in range(1, min(MOST_MATCH_TOKENS, size - 1)):
        inside = ends[np.searchsorted(ends, depth) :]
        deeper = inside[tokens[inside - depth] == tokens[-1 - depth]]
        if not len(deeper):
            if depth < LEAST_MATCH_TOKENS:
                return None
            break
        ends = deeper
    if size <= LEAST_MATCH_TOKENS or not len(ends):
        return None
    begin = int(ends[-1]) + 1
    follows = tokens[begin : begin + most_tokens]
    return follows.copy() if len(follows) == most_tokens else np.resize(tokens[begin:], most_tokens)


class PromptLookup:
    """Adds drafts to schedules, and learns from what came of them. One thread only."""

    def __init__(self, scheduler: Scheduler, mode: Speculation) -> None:
        self._scheduler = scheduler
        self._mode = mode
        self._adapts = mode is Speculation.AUTO
        self._plain = [_Speed() for _ in range(MOST_ROWS + 1)]
        self._drafted = [_Speed() for _ in range(MOST_ROWS + 1)]
        self._num_resting_steps = 0
        self._num_accepted = 0
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0

    def extend(self, schedule: Schedule) -> Schedule:
        """Return the schedule with drafts behind rows that decode, where they may pay; takes blocks for them."""
        num_rows = len(schedule.rows)
        if self._mode is Speculation.OFF:
            return schedule
        self._num_accepted = 0  # of this step; one that fails is not observed
        # Rows that read prompts fill their step by themselves, and speeds are told apart by rows that decode alone.
        if not 0 < num_rows <= MOST_ROWS or schedule.num_tokens != num_rows or self._rests(num_rows):
            return schedule
        most_tokens = min(self._scheduler.step_tokens, MOST_STEP_TOKENS) // num_rows - 1
        rows = [self._extended(row, most_tokens) for row in schedule.rows] if most_tokens > 0 else schedule.rows
        num_drafted = sum(len(row.draft) for row in rows)
        return replace(schedule, rows=rows, num_tokens=num_rows + num_drafted) if num_drafted else schedule

    def drawn(self, schedule: Schedule, result: StepResult) -> Iterator[tuple[Sequence, int | None, Logprobs]]:
        """Yield the new tokens of a step in the order of the batch, each before the next is looked at.

        None stands for a row that has none. A sequence that has ended gets no more.
        """
        tokens, counts, logprobs = result.tokens.tolist(), result.num_tokens.tolist(), result.logprobs.tolist()
        index = 0
        for row in schedule.rows:
            sequence = row.sequence
            if not row.samples:
                continue
            num_right = self._num_right(row, tokens, counts, index) if row.draft else 0
            for position in range(index, index + num_right + 1):
                if sequence.state is SequenceState.FINISHED:
                    break
                if not counts[position]:
                    if position == index:
                        yield sequence, None, ()
                    break
                # What was computed for the draft before it is of use: it was the right token.
                sequence.num_computed += position > index
                token = tokens[position][0]
                yield sequence, token, token_logprobs(sequence, token, position, logprobs[position], result)
            index += len(row.draft) + 1

    def _num_right(self, row: ScheduledRow, drawn: list[list[int]], counts: list[int], index: int) -> int:
        """Return how many tokens of a row's draft were drawn, from `index` on; what is no number (count 0) is not."""
        num_right = 0
        for token in row.draft:
            if not counts[index + num_right] or drawn[index + num_right][0] != token:
                break
            num_right += 1
        self._accepted(row, num_right)
        return num_right

    def _accepted(self, row: ScheduledRow, num_accepted: int) -> None:
        sequence, num_drafted = row.sequence, len(row.draft)
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        self._num_accepted += num_accepted
        if num_accepted == num_drafted:
            sequence.draft_tokens = min(2 * num_drafted + 1, MOST_DRAFT_TOKENS)
        else:
            sequence.draft_tokens = num_accepted + 1
        if num_accepted:
            sequence.rest_tokens = 0
        elif self._adapts:
            sequence.rest_tokens = min(max(FIRST_REST_TOKENS, 2 * sequence.rest_tokens), MOST_REST_TOKENS)
            sequence.draft_from = sequence.num_tokens + sequence.rest_tokens

    def observe(self, schedule: Schedule, step_seconds: float) -> None:
        """Take note of what a step took."""
        if self._mode is Speculation.OFF:
            return
        num_rows = len(schedule.rows)
        num_drafted = sum(len(row.draft) for row in schedule.rows) if schedule.num_tokens > num_rows else 0
        if num_rows <= MOST_ROWS and schedule.num_tokens - num_drafted == num_rows:
            speed = (self._drafted if num_drafted else self._plain)[num_rows]
            speed.add(num_rows + self._num_accepted, step_seconds)

    def status(self) -> SpeculationStatus | None:
        """Return counters; None where nothing is drafted."""
        if self._mode is Speculation.OFF:
            return None
        return SpeculationStatus(
            drafts=self.num_drafts, draft_tokens=self.num_draft_tokens, accepted_tokens=self.num_accepted_tokens
        )

    def _rests(self, num_rows: int) -> bool:
        """Whether drafts do not pay now with so many rows."""
        if not self._adapts:
            return False
        drafted, plain = self._drafted[num_rows], self._plain[num_rows]
        if not (drafted.known and plain.known and drafted.slower_than(plain)):
            return False
        self._num_resting_steps += 1
        if self._num_resting_steps < STEPS_BEFORE_TRIAL:
            return True
        self._num_resting_steps = 0
        self._drafted[num_rows] = _Speed()
        return False

    def _extended(self, row: ScheduledRow, most_tokens: int) -> ScheduledRow:
        sequence, request = row.sequence, row.sequence.request
        # A constraint's masks follow the tokens one by one.
        if sequence.draft_from > sequence.num_tokens or request.sampling.constraint is not None or not row.samples:
            return row
        most_tokens = min(most_tokens, sequence.draft_tokens, request.max_new_tokens - sequence.num_generated - 1)
        if request.has_penalties:
            most_tokens = min(most_tokens, MOST_HISTORY_TOKENS // sequence.num_tokens - 1)
        if most_tokens < 1:
            return row
        draft = find_draft(sequence.tokens(), most_tokens)
        if draft is None:
            return row
        num_tokens = self._room(sequence, len(draft))
        return replace(row, draft=tuple(draft[:num_tokens].tolist())) if num_tokens else row

    def _room(self, sequence: Sequence, num_tokens: int) -> int:
        """Return for how many of so many tokens behind its own a sequence has blocks, or gets spare ones."""
        pool = self._scheduler.pool
        while len(sequence.blocks) * pool.block_tokens < sequence.num_tokens + num_tokens:
            if pool.num_available <= len(self._scheduler.running):
                break
            sequence.attach(pool.allocate(1) or [])
        return min(num_tokens, len(sequence.blocks) * pool.block_tokens - sequence.num_tokens)
