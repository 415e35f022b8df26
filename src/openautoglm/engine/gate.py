"""`DeadlineGate`: which waiting choices may start, so that what is started ends in time."""

from __future__ import annotations

from openautoglm.engine.deadlines import DeadlineQueue, StepCosts, StepPrice, Work, late, work_left
from openautoglm.engine.expected import AnswerLengths
from openautoglm.engine.request import Request, Sequence
from openautoglm.engine.scheduler import Scheduler, Verdict

# Half of the answers turn out shorter: what ends earlier than expected makes up for what ends later.
TIME_QUANTILE = 0.5
# How often waiting requests are looked through for those without hope.
SWEEP_SECONDS = 0.05


class DeadlineGate:
    """Prices choices in time. Costs nothing while no unfinished request has a deadline."""

    def __init__(self, scheduler: Scheduler, lengths: AnswerLengths) -> None:
        self._scheduler = scheduler
        self._lengths = lengths
        self._queue = DeadlineQueue()
        self._sweep_seconds = 0.0
        self.costs = StepCosts()

    @property
    def active(self) -> bool:
        """Whether any deadline is watched."""
        return len(self._queue) > 0

    def add(self, request: Request) -> None:
        """Watch a request's deadline."""
        self._queue.add(request)

    def hopeless(self, request: Request, now_seconds: float) -> bool:
        """Whether a waiting request cannot end in time even if nothing else runs."""
        price = self.costs.price()
        if price is None or request.deadline_seconds is None:
            return False
        sequence = request.sequences[0]
        work = work_left(sequence, self._expected(sequence))
        late_seconds = now_seconds + price.alone_seconds(work) - request.arrival_seconds - request.deadline_seconds
        if late_seconds <= 0:
            return False
        cached_tokens = min(self._scheduler.num_cached_tokens(sequence), work.prompt_tokens)
        return late_seconds > cached_tokens * price.prompt_token_seconds

    def ended(self, now_seconds: float) -> list[Request]:
        """Return the unfinished requests to be ended: past their deadline, or waiting without hope."""
        found = self._queue.expired(now_seconds)
        if now_seconds >= self._sweep_seconds:
            self._sweep_seconds = now_seconds + SWEEP_SECONDS
            waiting = {id(one.request): one.request for one in self._scheduler.waiting if one.num_admissions == 0}
            found.extend(one for one in waiting.values() if one not in found and self.hopeless(one, now_seconds))
        return found

    def judge(self, sequence: Sequence, now_seconds: float) -> Verdict:
        """Return whether a waiting choice may start now, beside what runs."""
        price = self.costs.price()
        running = self._scheduler.running
        if price is None or not running:
            return Verdict.START
        works = [work_left(one, self._expected(one)) for one in (*running, sequence)]
        if self._waits_too_long(sequence, works, price, now_seconds):
            return Verdict.SKIP
        too_late = late(works, price, now_seconds)
        if len(running) in too_late:
            return Verdict.SKIP
        if too_late - late(works[:-1], price, now_seconds):
            return Verdict.HOLD
        return Verdict.START

    def _waits_too_long(self, sequence: Sequence, works: list[Work], price: StepPrice, now_seconds: float) -> bool:
        """Whether the blocks that a choice needs will be free too late for it; the last of `works` is its own."""
        own = works[-1]
        if own.deadline_seconds is None:
            return False
        running, pool = self._scheduler.running, self._scheduler.pool
        missing = -(-sequence.num_tokens // pool.block_tokens) + len(running) - pool.num_available
        time_seconds, done_tokens, num_left = now_seconds, 0, len(running)
        for index in sorted(range(len(running)), key=lambda index: works[index].answer_tokens):
            if missing <= 0:
                break
            work = works[index]
            time_seconds += work.prompt_tokens * price.prompt_token_seconds
            time_seconds += (work.answer_tokens - done_tokens) * price.decode_seconds(num_left)
            done_tokens, num_left = work.answer_tokens, num_left - 1
            missing -= len(running[index].blocks) + 1
        time_seconds += own.prompt_tokens * price.prompt_token_seconds
        return time_seconds + own.answer_tokens * price.decode_seconds(num_left + 1) > own.deadline_seconds

    def _expected(self, sequence: Sequence) -> int:
        most = sequence.request.max_new_tokens
        if sequence.request.sampling.ignore_eos:
            return most
        expected = self._lengths.expect(sequence.num_generated, most, quantile=TIME_QUANTILE, least_answers=1)
        # Nothing is known yet: nobody is held back or given up for a guess.
        return sequence.num_generated + 1 if expected is None else expected
