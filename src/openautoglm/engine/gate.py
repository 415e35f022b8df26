"""`DeadlineGate`: which waiting choices may start, so that what is started ends in time."""

from __future__ import annotations

from openautoglm.engine.costs import StepCosts, step_load
from openautoglm.engine.deadlines import Beside, DeadlineQueue, StepPrice, Work, work_left
from openautoglm.engine.expected import AnswerLengths, guess_length
from openautoglm.engine.request import Request, Sequence
from openautoglm.engine.schedule import Schedule
from openautoglm.engine.scheduler import Scheduler, Verdict

# A choice that was started and is late at its end has wasted time. Where a queue waits for that time, what is started
# is taken to be as long as all but a tenth of the answers, else as half of them. Given up is who is late even if short.
QUEUE_QUANTILE = 0.9
START_QUANTILE = 0.5
GIVE_UP_QUANTILE = 0.1
QUEUE_SEQUENCES = 4
LEAST_ANSWERS = 8
# Whoever waits takes the place of who ends, so where four times as many wait as run, steps go on to take what they took
# lately on average, and a fifth more, as lengths are guesses: who is ended at the deadline has wasted more than a place
# left empty. Up to twice as many that is not looked at, as there is little to choose from; between, in proportion.
STEPS_AVERAGED = 32
SMALL_CROWD, CROWD = 2, 4
CROWD_FACTOR = 1.2
# How often waiting requests are looked through for those without hope, and how many at a time.
SWEEP_SECONDS = 0.05
SWEEP_SEQUENCES = 64


class DeadlineGate:
    """Prices choices in time. Costs nothing while no unfinished request has a deadline."""

    def __init__(self, scheduler: Scheduler, lengths: AnswerLengths, costs: StepCosts | None = None) -> None:
        self._scheduler = scheduler
        self._lengths = lengths
        self._queue = DeadlineQueue()
        self._now_seconds = self._sweep_seconds = 0.0
        self._sweep_position = 0
        self._beside: Beside | None = None
        self._quantile = START_QUANTILE
        self._step_seconds = 0.0
        self.costs = costs or StepCosts()

    @property
    def active(self) -> bool:
        """Whether any deadline is watched."""
        return len(self._queue) > 0

    def add(self, request: Request) -> None:
        """Watch a request's deadline."""
        self._queue.add(request)

    def observe(self, schedule: Schedule, seconds: float) -> None:
        """Learn what a step took."""
        self._step_seconds += (seconds - self._step_seconds) / STEPS_AVERAGED
        self.costs.add(step_load(schedule.rows), seconds)
        if self._scheduler.budget is not None:
            self._scheduler.budget.observe(len(schedule.rows), schedule.num_tokens, seconds)

    def hopeless(self, request: Request, now_seconds: float) -> bool:
        """Whether a waiting request cannot end in time even if nothing else runs and its answer is short."""
        price = self.costs.price()
        if price is None or request.deadline_seconds is None:
            return False
        sequence = request.sequences[0]
        expected = self._expect(sequence, GIVE_UP_QUANTILE)
        # Nothing is known yet: nobody is given up for a guess.
        work = work_left(sequence, sequence.num_generated + 1 if expected is None else expected)
        late_seconds = now_seconds + price.alone_seconds(work) - request.arrival_seconds - request.deadline_seconds
        if late_seconds <= 0:
            return False
        cached_tokens = min(self._scheduler.num_cached_tokens(sequence), work.prompt_tokens)
        return late_seconds > cached_tokens * price.prompt_token_seconds

    def begin_step(self, now_seconds: float) -> list[Request]:
        """Return the unfinished requests to be ended: past their deadline, or waiting without hope.

        What `judge` says until the next call is for a step that begins at `now_seconds`.
        """
        self._now_seconds = now_seconds
        self._beside = None
        self._quantile = QUEUE_QUANTILE if len(self._scheduler.waiting) > QUEUE_SEQUENCES else START_QUANTILE
        found = self._queue.expired(now_seconds)
        if now_seconds >= self._sweep_seconds:
            self._sweep_seconds = now_seconds + SWEEP_SECONDS
            found.extend(one for one in self._without_hope(now_seconds) if one not in found)
        return found

    def judge(self, sequence: Sequence) -> Verdict:
        """Return whether a waiting choice may start now, beside what runs."""
        price = self.costs.guess()
        if price is None or not self._scheduler.running:
            return Verdict.START
        beside = self._lay_out(price)
        work = work_left(sequence, self._guess(sequence))
        if work.deadline_seconds is not None:
            end = beside.end_seconds(work, missing_blocks=self._missing_blocks(sequence))
            end = max(end, self._crowded_end_seconds(work, price))
            if end > work.deadline_seconds:
                return Verdict.SKIP
        return Verdict.HOLD if beside.makes_late(work) else Verdict.START

    def _lay_out(self, price: StepPrice) -> Beside:
        """Return what runs; in the middle of a step it only grows."""
        running = self._scheduler.running
        if self._beside is None or self._beside.num_works != len(running):
            works = [work_left(one, self._guess(one)) for one in running]
            # One more than it has: a running choice has a claim on the block of its next token.
            blocks = [len(one.blocks) + 1 for one in running]
            self._beside = Beside(works, price, self._now_seconds, num_blocks=blocks)
        return self._beside

    def _crowded_end_seconds(self, work: Work, price: StepPrice) -> float:
        """Return when a choice ends if others go on to join those that run; now, if not many wait."""
        crowd = len(self._scheduler.waiting) / len(self._scheduler.running)
        if crowd <= SMALL_CROWD:
            return self._now_seconds
        share = (min(crowd, CROWD) - SMALL_CROWD) / (CROWD - SMALL_CROWD)
        own_seconds = work.prompt_tokens * price.prompt_token_seconds + work.answer_tokens * self._step_seconds
        return self._now_seconds + CROWD_FACTOR * share * own_seconds

    def _missing_blocks(self, sequence: Sequence) -> int:
        """Return how many blocks must be freed before a choice can be admitted; 0 or less if none."""
        running, pool = self._scheduler.running, self._scheduler.pool
        return -(-sequence.num_tokens // pool.block_tokens) + len(running) - pool.num_available

    def _without_hope(self, now_seconds: float) -> list[Request]:
        """Look through the next of those that have never run."""
        waiting = self._scheduler.waiting
        begin = self._sweep_position if self._sweep_position < len(waiting) else 0
        self._sweep_position = begin + SWEEP_SEQUENCES
        requests = {
            id(one.request): one.request for one in waiting[begin : begin + SWEEP_SEQUENCES] if not one.num_admissions
        }
        return [request for request in requests.values() if self.hopeless(request, now_seconds)]

    def _guess(self, sequence: Sequence) -> int:
        expected = self._expect(sequence, self._quantile)
        return guess_length(sequence.num_generated, sequence.request.max_new_tokens) if expected is None else expected

    def _expect(self, sequence: Sequence, quantile: float) -> int | None:
        most = sequence.request.max_new_tokens
        if sequence.request.sampling.ignore_eos:
            return most
        return self._lengths.expect(sequence.num_generated, most, quantile=quantile, least_answers=LEAST_ANSWERS)
