"""The gate in front of waiting choices, on a real scheduler: verdicts against a simulation, and what asking costs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.costs import LEAST_STEPS
from openautoglm.engine.deadlines import StepPrice, work_left
from openautoglm.engine.engine import Engine
from openautoglm.engine.gate import SWEEP_SECONDS, SWEEP_SEQUENCES, DeadlineGate
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.engine.schedule import Schedule
from openautoglm.engine.scheduler import MOST_ASKED, STEPS_BEFORE_ASKING, Scheduler, Verdict
from openautoglm.errors import DeadlineError
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.step_cost import StepLoad
from tests.engine.clock import Clock
from tests.engine.history_executor import HistoryExecutor, make_engine
from tests.engine.test_deadlines import late_ones, make, simulate

PRICE = StepPrice(base_seconds=1.0, prompt_token_seconds=0.125, row_seconds=0.25)


def gated(*, num_blocks: int = 400, max_running: int = 16) -> tuple[DeadlineGate, Scheduler]:
    """A gate that has seen enough steps at PRICE."""
    scheduler = Scheduler(BlockPool(num_blocks, 16), max_step_tokens=2048, max_running=max_running)
    gate = DeadlineGate(scheduler, scheduler.lengths)
    for step in range(60):
        prompt, rows = (step % 3) * 32, 1 + step % 5
        gate.costs.add(
            StepLoad(num_prompt_tokens=prompt, num_rows=rows, num_keys=0, num_pairs=0),
            PRICE.base_seconds + prompt * PRICE.prompt_token_seconds + rows * PRICE.row_seconds,
        )
    return gate, scheduler


def fixed(index: int, *, prompt: int, tokens: int, deadline: float | None) -> Request:
    """A request whose answer has exactly `tokens` tokens."""
    request = make(deadline, arrival=index, prompt=prompt)
    request.sampling = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
    request.max_new_tokens = tokens
    return request


def compute(scheduler: Scheduler) -> None:
    """Run a step of a model that always says 5."""
    schedule = scheduler.schedule()
    scheduler.commit(schedule)
    for row in schedule.rows:
        if row.samples:
            row.sequence.append(5)


def full_step(*, num_rows: int) -> Schedule:
    """A step that decodes so many rows."""
    scheduler = Scheduler(BlockPool(400, 16), max_step_tokens=2048, max_running=num_rows)
    for index in range(num_rows):
        scheduler.add(fixed(index, prompt=4, tokens=50, deadline=None))
    compute(scheduler)
    schedule = scheduler.schedule()
    assert schedule.num_tokens == num_rows
    return schedule


def plain_verdict(gate: DeadlineGate, scheduler: Scheduler, sequence: Sequence, now: float) -> Verdict:
    """The judgement, step by step: O(steps * n)."""
    price = gate.costs.price()
    assert price is not None
    running = scheduler.running
    works = [work_left(one, one.request.max_new_tokens) for one in running]
    own = work_left(sequence, sequence.request.max_new_tokens)
    missing = -(-sequence.num_tokens // 16) + len(running) - scheduler.pool.num_available
    after = 0
    for index in sorted(range(len(works)), key=lambda index: works[index].answer_tokens):
        if missing <= 0:
            break
        after += 1
        missing -= len(running[index].blocks) + 1
    end = simulate(works, price, now, own, after=after)[-1]
    if own.deadline_seconds is not None and end > own.deadline_seconds:
        return Verdict.SKIP
    beside = simulate(works, price, now, own)[:-1]
    return Verdict.HOLD if late_ones(works, beside) - late_ones(works, simulate(works, price, now)) else Verdict.START


@pytest.mark.parametrize("num_blocks", [12, 20, 40])
def test_verdicts_are_those_of_a_plain_simulation(num_blocks: int) -> None:
    randomness = random.Random(num_blocks)
    seen: Counter[Verdict] = Counter()
    for _ in range(150):
        gate, scheduler = gated(num_blocks=num_blocks)
        for index in range(randomness.randint(1, 8)):
            deadline = randomness.choice([None, randomness.uniform(20, 120), randomness.uniform(20, 120)])
            scheduler.add(
                fixed(
                    index, prompt=randomness.randint(1, num_blocks), tokens=randomness.randint(4, 60), deadline=deadline
                )
            )
        for _ in range(randomness.randint(1, 3)):
            compute(scheduler)
        candidate = fixed(
            99, prompt=randomness.randint(1, 60), tokens=randomness.randint(1, 60), deadline=randomness.uniform(30, 300)
        ).sequences[0]
        candidate.state = SequenceState.WAITING
        now = randomness.uniform(0, 3)
        gate.begin_step(now)
        verdict = gate.judge(candidate)
        assert verdict is plain_verdict(gate, scheduler, candidate, now)
        seen[verdict] += 1
    assert min(seen[verdict] for verdict in Verdict) >= 10, seen


@pytest.mark.parametrize(("num_waiting", "share"), [(2, 0.0), (3, 0.5), (4, 1.0), (40, 1.0)])
def test_among_many_that_wait_a_choice_must_end_at_the_pace_of_full_steps(num_waiting: int, share: float) -> None:
    gate, scheduler = gated()
    scheduler.add(fixed(0, prompt=4, tokens=50, deadline=None))
    compute(scheduler)
    # Beside the one that runs a token takes 1.5 s; lately twenty ran, and steps took 6 s.
    full = full_step(num_rows=20)
    for _ in range(500):
        gate.observe(full, PRICE.decode_seconds(20))
    for index in range(1, num_waiting + 1):
        scheduler.add(fixed(index, prompt=4, tokens=20, deadline=None))
    crowded_seconds = 1.2 * share * (4 * PRICE.prompt_token_seconds + 20 * 6.0)
    ends = max(0.5 + 20 * 1.5, crowded_seconds)
    for deadline, verdict in ((ends + 0.01, Verdict.START), (ends - 0.01, Verdict.SKIP)):
        candidate = fixed(99, prompt=4, tokens=20, deadline=deadline).sequences[0]
        candidate.state = SequenceState.WAITING
        gate.begin_step(0.0)
        assert gate.judge(candidate) is verdict


def test_what_starts_in_a_step_counts_for_the_next_in_it() -> None:
    gate, scheduler = gated()
    scheduler.add(fixed(0, prompt=4, tokens=20, deadline=40.0))
    compute(scheduler)
    gate.begin_step(0.0)
    scheduler.gate = gate.judge
    # The first one has 40 - 19 * 1.25 seconds to spare; each more takes 0.5 and 0.25 a step from it.
    for index in range(1, 9):
        scheduler.add(fixed(index, prompt=4, tokens=20, deadline=None))
    compute(scheduler)
    assert len(scheduler.running) == 1 + int((40.0 - 19 * 1.25) // (0.5 + 19 * 0.25))


def test_nothing_known_holds_nobody() -> None:
    scheduler = Scheduler(BlockPool(400, 16), max_step_tokens=2048, max_running=16)
    gate = DeadlineGate(scheduler, scheduler.lengths)
    request = fixed(0, prompt=90, tokens=100, deadline=0.001)
    assert not gate.hopeless(request, 0.0)
    assert gate.judge(request.sequences[0]) is Verdict.START


def test_given_up_is_what_cannot_end_alone_even_if_short() -> None:
    gate, scheduler = gated()
    # Alone: 40 prompt tokens take 5 s, and each token of the answer 1.25 s. A tenth of the answers has up to 11 tokens.
    for length in range(1, 101):
        scheduler.lengths.add(length)
    assert not gate.hopeless(make(5 + 11 * 1.25, prompt=40), 0.0)
    assert gate.hopeless(make(5 + 9 * 1.25, prompt=40), 0.0)
    assert gate.hopeless(make(5 + 11 * 1.25, prompt=40), 3.0)
    assert not gate.hopeless(make(None, prompt=40), 1e9)


def test_the_sweep_finds_everybody_without_hope_a_few_at_a_time() -> None:
    gate, scheduler = gated()
    scheduler.admits = False
    scheduler.add(fixed(0, prompt=4, tokens=50, deadline=None))
    compute(scheduler)
    requests = [fixed(index, prompt=4, tokens=50, deadline=30.0) for index in range(1, 3 * SWEEP_SEQUENCES)]
    for request in requests:
        gate.add(request)
        scheduler.add(request)
    found: list[Request] = []
    for sweep in range(6):
        new = gate.begin_step(1 + 2 * SWEEP_SECONDS * sweep)
        assert len(new) <= SWEEP_SEQUENCES
        for request in new:
            scheduler.remove(request.sequences[0])
        found.extend(new)
    assert sorted(request.arrival for request in found) == [request.arrival for request in requests]


def test_a_long_queue_is_asked_in_pieces_and_in_order() -> None:
    _, scheduler = gated()
    scheduler.add(fixed(0, prompt=4, tokens=50, deadline=None))
    compute(scheduler)
    for index in range(1, 513):
        scheduler.add(fixed(index, prompt=4, tokens=50, deadline=None))
    asked: list[int] = []

    def skip(sequence: Sequence) -> Verdict:
        asked.append(sequence.request.arrival)
        return Verdict.SKIP

    scheduler.gate = skip
    for step in range(8):
        compute(scheduler)
        assert len(asked) == MOST_ASKED * (step + 1)
    assert asked == list(range(1, 513))
    for _ in range(STEPS_BEFORE_ASKING):
        compute(scheduler)
    assert len(asked) == 512
    compute(scheduler)
    assert asked[512:] == list(range(1, MOST_ASKED + 1))
    # Who comes late in order but first in priority is the next to be asked.
    urgent = fixed(900, prompt=4, tokens=50, deadline=None)
    urgent.sequences[0].order = (-1, 900, 0)
    scheduler.add(urgent)
    asked.clear()
    compute(scheduler)
    assert asked[0] == 900


def test_who_is_held_lets_nobody_pass_and_who_is_skipped_does() -> None:
    _, scheduler = gated()
    scheduler.add(fixed(0, prompt=4, tokens=50, deadline=None))
    compute(scheduler)
    for index in range(1, 5):
        scheduler.add(fixed(index, prompt=4, tokens=50, deadline=None))
    verdicts = {1: Verdict.SKIP, 2: Verdict.START, 3: Verdict.HOLD, 4: Verdict.START}
    scheduler.gate = lambda sequence: verdicts[sequence.request.arrival]
    compute(scheduler)
    assert [sequence.request.arrival for sequence in scheduler.running] == [0, 2]
    verdicts[3] = Verdict.START
    scheduler.remove(scheduler.running[0])
    compute(scheduler)
    assert [sequence.request.arrival for sequence in scheduler.running] == [2, 3, 4]


class SlowExecutor(HistoryExecutor):
    """A step takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(256)
        self.clock = clock

    def submit(self, batch):
        self.clock.now += 1.0
        return super().submit(batch)


def send(engine: Engine, name: str, *, tokens: int, deadline: float | None) -> None:
    sampling = SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True)
    engine.add(GenerationRequest(request_id=name, prompt_tokens=(2, 3), sampling=sampling, deadline_seconds=deadline))


def test_an_engine_ends_what_is_out_of_time_and_says_so() -> None:
    clock = Clock()
    engine = make_engine(SlowExecutor(clock), clock=clock)
    send(engine, "long", tokens=100, deadline=30.0)
    events = []
    while engine.has_work:
        events.extend(engine.step())
    assert 30 <= clock.now <= 31
    assert events[-1].error_kind == DeadlineError.__name__
    assert events[-1].completion_tokens == 30
    assert engine.status().num_missed_deadlines == 1
    assert clock.now > LEAST_STEPS
    with pytest.raises(DeadlineError, match="even alone"):
        send(engine, "hopeless", tokens=100, deadline=30.0)
    send(engine, "possible", tokens=20, deadline=30.0)
    while engine.has_work:
        events.extend(engine.step())
    assert events[-1].finish_reason == "length"
    engine.integrity_check()


def test_among_equals_the_earliest_end_is_first_and_nobody_is_put_off_for_ever() -> None:
    def request(arrival: int, seconds: float, deadline: float | None, priority: int = 0) -> Request:
        made = fixed(arrival, prompt=4, tokens=4, deadline=deadline)
        made.arrival, made.arrival_seconds, made.priority = arrival, seconds, priority
        made.sequences = [Sequence(made, 0, max_blocks=4, text=made.sequences[0].text)]
        return made

    asked = [
        request(0, 0.0, None), request(1, 1.0, 50.0), request(2, 2.0, 20.0), request(3, 3.0, 80_000.0),
        request(4, 30.0, None), request(5, 59.0, 0.5), request(6, 60.5, 1.0), request(7, 70.0, 1.0, priority=-1),
    ]  # fmt: skip
    ordered = sorted(asked, key=lambda one: one.sequences[0].order)
    # Ends by 59.5, 60 (none set), 61.5, 63 (set far away) and so on; a better priority goes before all.
    assert [one.arrival for one in ordered] == [7, 2, 1, 5, 0, 6, 3, 4]
