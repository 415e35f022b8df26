"""`Scheduler`: which tokens of which sequences the next step computes.

Continuous batching with chunked prefill. Every list is kept in `Sequence.order` = (due, put back by priority; arrival,
choice): see `Request.place_seconds` and spec/scheduling.py. It never changes: waiting long brings a choice forward.

    each step, within max_step_tokens:
        0. the first that waits takes the place of the worst running ones, if those are of a lower queue
        1. decoding sequences, best first, one token each       (a block that is missing is taken from the worst)
        2. sequences in the middle of their prompt, best first  (their blocks were reserved on admission), as many
           tokens as leave those that decode their pace
        3. waiting sequences, strictly in order, if all blocks of their tokens can be had and what is expected to be
           running with them will fit; with deadlines, if they end in time and make nobody late

The victim of a preemption is the worst running sequence: its blocks are released (full ones stay findable until
evicted) and it waits again in its old place. The best running sequence is never a victim unless it is alone, and
alone every admitted sequence fits the pool; so the best one always advances and nobody starves.
"""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from enum import Enum

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.expected import AnswerLengths, peak_blocks
from openautoglm.engine.prefix import PrefixCache
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.engine.schedule import Schedule, ScheduledRow
from openautoglm.engine.spill import Spill
from openautoglm.engine.step_budget import StepBudget
from openautoglm.engine.timeline import Phase
from openautoglm.spec.pressure import Rung

STEPS_BEFORE_GROWTH = 16
# Answers are taken to be as long as all but this share of those before: a preemption costs more than a short wait.
BLOCK_QUANTILE = 0.75
# A gate that let nobody through is asked again when something changed, or after this many steps.
STEPS_BEFORE_ASKING = 16
# A gate is asked about so many in one step; the next one goes on from there.
MOST_ASKED = 64


class Verdict(Enum):
    """START a choice; HOLD it and everything behind it, as it would make others late; SKIP it, late as things are."""

    START = "start"
    HOLD = "hold"
    SKIP = "skip"


Gate = Callable[[Sequence], Verdict]


class Scheduler:
    """Owns the waiting and running lists and every sequence's blocks. One thread only.

    `admits` False keeps everybody waiting while something runs. `gate`, where there is one, is asked about each
    sequence before it starts; `budget`, about prompt tokens beside streams. `lengths` are the answers so far.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_step_tokens: int,
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
        spill: Spill | None = None,
    ) -> None:
        self.pool = pool
        self._clock = clock
        self._prefix = PrefixCache(pool)
        self._spill = spill
        if spill is not None:
            pool.on_evict = spill.evicted
            spill.retained = pool.retained
        self._max_step_tokens = max_step_tokens
        self._max_running = min(max_running, max_step_tokens)
        self._step_tokens = max_step_tokens
        self._good_steps = 0
        self._num_held = 0
        self._num_quiet_steps = 0
        self._ask_from = 0
        self.admits = True
        self.gate: Gate | None = None
        self.budget: StepBudget | None = None
        self.lengths = AnswerLengths()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = self.num_spills = 0
        self.num_recomputed_tokens = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0

    @property
    def prefix(self) -> PrefixCache:
        """What finds blocks by their content."""
        return self._prefix

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self.waiting)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, including choices that wait for their prompt to be computed once."""
        return len(self.waiting) + self._num_held

    def add(self, request: Request) -> None:
        """Queue the first choice; the others follow when it has computed the prompt, and share its full blocks."""
        self._enqueue(request.sequences[0])
        self._num_held += len(request.sequences) - 1

    def schedule(self) -> Schedule:
        """Choose the next step. Takes blocks, admits, preempts; `commit` must follow a step that succeeded."""
        if self.waiting and self.admits and not self._num_quiet_steps:
            self._yield_to_first()
        rows: list[ScheduledRow] = []
        budget = self._step_tokens
        for sequence in [s for s in self.running if s.num_pending == 1]:
            if not budget:
                break
            if sequence.state is SequenceState.RUNNING and self._grow(sequence):
                budget -= self._take(rows, sequence, budget)
        withheld = 0
        if self.budget is not None and budget:
            withheld = budget - self._most_prompt_tokens(self.budget, rows, budget)
            budget -= withheld
        for sequence in self.running:
            if budget and sequence.num_pending > 1:
                budget -= self._take(rows, sequence, budget)
        if budget and self.waiting and (self.admits or not self.running):
            budget = self._start_waiting(rows, budget)
        return Schedule(rows, self._step_tokens - withheld - budget)

    def _most_prompt_tokens(self, limit: StepBudget, rows: list[ScheduledRow], budget: int) -> int:
        """Return how many prompt tokens the step may have, for the sake of those that decode."""
        first = next((one for one in self.running if one.num_pending > 1), None)
        if first is None:
            if not self.waiting:
                return budget
            first = self.waiting[0]
        return limit.limit(rows, budget, first, self._clock())

    def _start_waiting(self, rows: list[ScheduledRow], budget: int) -> int:
        """Admit what may start, in order; return what is left of the budget."""
        if self._num_quiet_steps and self.running:
            self._num_quiet_steps -= 1
            return budget
        position = begin = 0 if self.gate is None else self._ask_from
        self._ask_from = 0
        num_started = 0
        while budget and position < len(self.waiting) and len(self.running) < self._max_running:
            if position == begin + MOST_ASKED:
                self._ask_from = position
                return budget
            sequence = self.waiting[position]
            verdict = Verdict.START if self.gate is None else self.gate(sequence)
            if verdict is Verdict.SKIP:
                position += 1
                continue
            if verdict is Verdict.HOLD or not self._admit(sequence):
                self._num_quiet_steps = STEPS_BEFORE_ASKING
                return budget
            sequence.timeline.start(self._clock())
            budget -= self._take(rows, sequence, budget)
            num_started += 1
            if not self.admits:
                return budget
        if not num_started and position == len(self.waiting):
            self._num_quiet_steps = STEPS_BEFORE_ASKING
        return budget

    def wake(self) -> None:
        """Ask again in the next step who may start: something has changed."""
        self._num_quiet_steps = 0

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Return how many tokens of a waiting sequence would be found in the cache now."""
        return len(self._prefix.match(sequence)) * self.pool.block_tokens

    def commit(self, schedule: Schedule) -> None:
        """Record that the step was computed: its blocks become findable, held choices of its requests wait."""
        for row in schedule.rows:
            sequence = row.sequence
            sequence.num_computed = row.end
            self._prefix.register(sequence)
            if sequence.choice == 0 and row.begin < sequence.request.num_prompt_tokens <= row.end:
                self._release_held(sequence.request)
        self._good_steps += 1
        if self._good_steps == STEPS_BEFORE_GROWTH:
            self._good_steps = 0
            self._step_tokens = min(self._step_tokens * 2, self._max_step_tokens)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands, and release its blocks."""
        match sequence.state:
            case SequenceState.RUNNING:
                self.running.remove(sequence)
            case SequenceState.WAITING:
                self.waiting.remove(sequence)
            case SequenceState.HELD:
                self._num_held -= 1
            case SequenceState.FINISHED:
                return
        self.pool.release(sequence.detach())
        if self._spill is not None:
            self._spill.forget(sequence)
        sequence.state = SequenceState.FINISHED
        self.wake()

    def shrink(self, schedule: Schedule) -> bool:
        """Make the next step smaller than `schedule`, which ran out of memory; False when it cannot be smaller.

        Halves the tokens of a step (they double again after STEPS_BEFORE_GROWTH good steps); a step of one token
        can still be helped by releasing the blocks of everybody else.
        """
        self._good_steps = 0
        if schedule.num_tokens > 1:
            self._step_tokens = schedule.num_tokens // 2
            return True
        if len(self.running) == 1:
            return False
        keep = schedule.rows[0].sequence
        self._preempt(next(sequence for sequence in reversed(self.running) if sequence is not keep))
        return True

    @property
    def max_step_tokens(self) -> int:
        """The most tokens of a step; a step that followed a lack of memory has fewer."""
        return self._max_step_tokens

    @property
    def step_tokens(self) -> int:
        """The most tokens of the next step."""
        return self._step_tokens

    def limit_step_tokens(self, num_tokens: int) -> None:
        """Change the most tokens of a step, to no less than there may be running sequences."""
        self._max_step_tokens = num_tokens
        self._step_tokens = min(self._step_tokens, num_tokens)

    def preempt_last(self) -> None:
        """Take its blocks from the last running sequence; it waits again in its place."""
        self._preempt(self.running[-1])

    def relocate(self, new_places: Mapping[int, int]) -> None:
        """Rewrite every block table after blocks were moved between steps."""
        for sequence in self.running:
            sequence.relocate(new_places)

    def integrity_check(self) -> None:
        """Check the pool against every table, and the lists' order; raise `EngineError` if anything is off."""
        self.pool.integrity_check(sequence.blocks for sequence in self.running + self.waiting)

    def _take(self, rows: list[ScheduledRow], sequence: Sequence, budget: int) -> int:
        count = min(sequence.num_pending, budget)
        rows.append(ScheduledRow(sequence, sequence.num_computed, sequence.num_computed + count))
        return count

    def _grow(self, sequence: Sequence) -> bool:
        """Give a decoding sequence the block of its next token; False when it had to be preempted itself."""
        while len(sequence.blocks) * self.pool.block_tokens < sequence.num_tokens:
            blocks = self.pool.allocate(1)
            if blocks is not None:
                sequence.attach(blocks)
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _yield_to_first(self) -> None:
        """Set back running sequences of lower queues, the worst first, while the first that waits finds no place.

        Whoever is set back stands behind whom it made room for, so that this never turns around.
        """
        first = self.waiting[0]
        rank = first.request.queue.value
        if not self.running or self.running[-1].request.queue.value <= rank or self.running[-1].order < first.order:
            return
        lower = [one for one in self.running if one.request.queue.value > rank and one.order > first.order]
        others = [one for one in self.running if one not in lower]
        num_blocks = -(-first.num_tokens // self.pool.block_tokens)
        num_freed = sum(len(one.blocks) for one in lower)
        if num_blocks + len(others) > self.pool.num_available + num_freed:
            return
        if others and not self._expected_to_fit(first, num_blocks, others):
            return
        if self.gate is not None and self.gate(first) is not Verdict.START:
            return  # nobody would start in the place of those who are set back
        while lower and (len(self.running) >= self._max_running or self._place_for(first) is None):
            self._preempt(lower.pop())

    def _place_for(self, sequence: Sequence) -> tuple[list[int], int] | None:
        """Return the cached blocks of a waiting sequence, and how many more it needs, if all of them can be had.

        One block is left for each running one.
        """
        matched = self._prefix.match(sequence)
        num_new = -(-sequence.num_tokens // self.pool.block_tokens) - len(matched)
        num_taken = sum(map(self.pool.is_cached, matched))
        if num_new + num_taken + len(self.running) > self.pool.num_available:
            return None
        if self.running and not self._expected_to_fit(sequence, num_new + num_taken, self.running):
            return None
        return matched, num_new

    def _admit(self, sequence: Sequence) -> bool:
        """Start a waiting sequence if there is a place for it."""
        place = self._place_for(sequence)
        if place is None:
            return False
        matched, num_new = place
        self.pool.share(matched)
        sequence.attach(matched + (self.pool.allocate(num_new) or []))
        sequence.num_computed = len(matched) * self.pool.block_tokens
        sequence.num_registered = len(matched)
        self._make_up(sequence, num_matched=len(matched))
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        sequence.state = SequenceState.RUNNING
        sequence.num_admissions += 1
        if sequence.choice == 0 and sequence.num_admissions == 1:
            sequence.request.num_cached_tokens = sequence.num_computed
            self.prefix_query_tokens += sequence.num_tokens
            self.prefix_hit_tokens += sequence.num_computed
        return True

    def _expected_to_fit(self, candidate: Sequence, num_taken: int, beside: list[Sequence]) -> bool:
        """Whether the pool will probably hold what is beside and the candidate to their ends; True if nothing is known.

        Blocks that several share are theirs in equal parts.
        """
        needs = [(len(one.blocks), self._expected_growth(one, len(one.blocks))) for one in beside]
        shared = self.pool.num_used / max(1, sum(now for now, _ in needs))
        scaled = [(int(now * shared), growth) for now, growth in needs]
        num_blocks = -(-candidate.num_tokens // self.pool.block_tokens)
        scaled.append((num_taken, self._expected_growth(candidate, num_blocks)))
        return peak_blocks(scaled) <= self.pool.num_usable

    def _expected_growth(self, sequence: Sequence, num_blocks: int) -> int:
        request = sequence.request
        expected = self.lengths.expect(sequence.num_generated, request.max_new_tokens, quantile=BLOCK_QUANTILE)
        if expected is None:
            return 0
        return max(0, -(-(request.num_prompt_tokens + expected) // self.pool.block_tokens) - num_blocks)

    def _make_up(self, sequence: Sequence, *, num_matched: int) -> None:
        """Bring back what a sequence that was set back had computed, or a prefix that was spilled; count the rest."""
        if not sequence.num_lost_tokens:
            if self._spill is not None:
                end = (sequence.num_tokens - 1) // self.pool.block_tokens
                sequence.num_computed = self._spill.fetch(sequence, first=num_matched, end=end) * self.pool.block_tokens
            return
        if self._spill is not None:
            num_whole = self._spill.restore(sequence, self.pool, first=num_matched)
            restored = min(num_whole * self.pool.block_tokens, sequence.num_lost_tokens)
            sequence.num_computed = max(sequence.num_computed, restored)
            self._spill.forget(sequence)
        num_again = max(0, sequence.num_lost_tokens - sequence.num_computed)
        sequence.request.num_recomputed_tokens += num_again
        self.num_recomputed_tokens += num_again
        sequence.num_lost_tokens = 0

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.num_lost_tokens = sequence.num_computed
        spills = self._spill is not None and self._spill.store.accepts
        if self._spill is not None and spills:
            keys = self._prefix.content_keys(sequence)
            if sequence.num_computed % self.pool.block_tokens:
                self.pool.register(sequence.blocks[len(keys) - 1], keys[-1])
            self._spill.want(sequence, keys)
        self.pool.release(sequence.detach())
        sequence.timeline.enter(Phase.SPILLED if spills else Phase.PREEMPTED, self._clock())
        sequence.request.touch(Rung.SPILL if spills else Rung.PREEMPT)
        self._enqueue(sequence)
        self.num_preemptions += 1
        self.num_spills += spills

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        self._ask_from = min(self._ask_from, bisect_right(self.waiting, sequence.order, key=_order))
        insort(self.waiting, sequence, key=_order)
        self.wake()

    def _release_held(self, request: Request) -> None:
        for sequence in request.sequences:
            if sequence.state is SequenceState.HELD:
                self._num_held -= 1
                self._enqueue(sequence)


def _order(sequence: Sequence) -> tuple[float, int, int]:
    return sequence.order
