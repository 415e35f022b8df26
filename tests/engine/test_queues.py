"""Queues, aging and giving way, on a real scheduler and a clock of its own."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.engine.admission import make_request
from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.queues import queue_status
from openautoglm.engine.request import Request, Sequence, SequenceState
from openautoglm.engine.scheduler import Scheduler, Verdict
from openautoglm.errors import ConfigError
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import MOST_PRIORITY, Queue, SchedulingOptions, behind_seconds, queue_of
from tests.engine.history_executor import Collector, HistoryExecutor, WordTokenizer, isolated, make_engine
from tests.engine.test_deadlines import LIMITS

AGING = 30.0
PRIORITIES = st.integers(-MOST_PRIORITY, MOST_PRIORITY)


class Machine:
    """A scheduler whose steps take a second each; every answer goes on to its max_tokens."""

    def __init__(self, *, num_blocks: int = 64, max_running: int = 2, max_step_tokens: int = 32) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(
            BlockPool(num_blocks, 16), max_step_tokens=max_step_tokens, max_running=max_running, clock=lambda: self.now
        )
        self.requests: list[Request] = []
        self.started: list[Sequence] = []
        self.ended: dict[int, float] = {}

    def add(self, priority: int, *, prompt: int = 5, tokens: int = 10) -> Request:
        generation = GenerationRequest(
            request_id=str(len(self.requests)),
            prompt_tokens=(5,) * prompt,
            sampling=SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True),
            priority=priority,
            namespace=str(len(self.requests)),
        )
        limits = replace(LIMITS, aging_seconds=AGING)
        request = make_request(generation, limits, WordTokenizer(), arrival=len(self.requests), now_seconds=self.now)
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        before = set(map(id, self.scheduler.running))
        waited = list(self.scheduler.waiting)
        schedule = self.scheduler.schedule()
        started = [one for one in self.scheduler.running if id(one) not in before]
        self.started.extend(started)
        # No inversion: whoever still waits stands behind all that were started.
        for one in started:
            assert all(one.order < other.order for other in self.scheduler.waiting if other in waited)
        self.now += 1.0
        self.scheduler.commit(schedule)
        for row in schedule.rows:
            if row.samples and row.sequence.state is SequenceState.RUNNING:
                row.sequence.append(5)
                if row.sequence.num_generated >= row.sequence.request.max_new_tokens:
                    self.ended[row.sequence.request.arrival] = self.now
                    self.scheduler.remove(row.sequence)
        self.scheduler.integrity_check()

    def run(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no end")


@given(PRIORITIES, PRIORITIES, st.floats(0, 1000))
def test_smaller_numbers_stand_before_larger_ones_and_queues_an_aging_apart(one: int, other: int, aging: float) -> None:
    ahead = behind_seconds(other, aging) - behind_seconds(one, aging)
    assert (ahead >= 0) == (one <= other) or ahead == 0
    if queue_of(one) is not queue_of(other):
        assert abs(ahead) >= aging
    assert abs(ahead) <= 4 * aging


def test_the_sign_is_the_queue() -> None:
    assert [queue_of(number) for number in (-1000, -1, 0, 1, 1000)] == [
        Queue.HIGH, Queue.HIGH, Queue.NORMAL, Queue.BATCH, Queue.BATCH,
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"itl_seconds": 0.0}, {"ttft_seconds": -1.0}, {"aging_seconds": -1.0}])
def test_targets_that_are_no_times_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        SchedulingOptions(**wrong)


def test_a_lower_queue_waits_while_others_are_there_and_no_longer_than_its_age() -> None:
    """Two come every second for one place: without aging the batch request would never start."""
    machine = Machine(max_running=1, max_step_tokens=64)
    batch = machine.add(1, tokens=1)
    machine.add(0, tokens=1)
    for _ in range(200):
        machine.add(0, tokens=1)
        machine.add(0, tokens=1)
        machine.step()
        if batch.finished:
            break
    # It stands where one stands who arrived AGING later, before whom 2 a second came.
    assert batch.finished
    assert machine.now == pytest.approx(2 * AGING + 2, abs=3)
    assert len(machine.ended) == pytest.approx(2 * AGING + 2, abs=4)


def test_a_better_queue_takes_the_places_of_worse_ones_the_worst_first() -> None:
    machine = Machine(max_running=3)
    first, second, third = (machine.add(priority, tokens=20) for priority in (1, 2, 3))
    machine.step()
    machine.step()
    normal = machine.add(0, tokens=5)
    machine.step()
    assert [one.request for one in machine.scheduler.running] == [normal, first, second]
    assert [one.request for one in machine.scheduler.waiting] == [third]
    high = machine.add(-1, tokens=5)
    machine.step()
    assert [one.request for one in machine.scheduler.running] == [high, normal, first]
    machine.run()
    assert len(machine.ended) == 5
    assert machine.scheduler.num_preemptions == 2


def test_blocks_are_freed_for_a_better_queue_only_where_that_helps() -> None:
    machine = Machine(num_blocks=12, max_running=4, max_step_tokens=128)
    machine.add(1, prompt=60, tokens=10)
    machine.add(0, prompt=60, tokens=10)
    machine.step()
    assert [one.request.priority for one in machine.scheduler.running] == [0, 1]
    # Nine blocks of twelve: of the two that run both are of lower queues, and both must give way.
    machine.add(-1, prompt=140, tokens=10)
    machine.step()
    assert [one.request.priority for one in machine.scheduler.running] == [-1]
    machine.run()
    other = Machine(num_blocks=12, max_running=4, max_step_tokens=128)
    other.add(0, prompt=60, tokens=10)
    other.add(1, prompt=60, tokens=10)
    other.step()
    # The normal one gives no way to a normal one, and the batch one's blocks are too few.
    other.add(0, prompt=140, tokens=10)
    other.step()
    assert [one.request.priority for one in other.scheduler.running] == [0, 1], "nobody gives way for nothing"
    assert other.scheduler.num_preemptions == 0


@pytest.mark.parametrize(("verdict", "preemptions"), [(Verdict.START, 1), (Verdict.HOLD, 0), (Verdict.SKIP, 0)])
def test_nobody_gives_way_to_one_that_its_deadline_gate_holds_back(verdict: Verdict, preemptions: int) -> None:
    machine = Machine(max_running=2)
    machine.add(0, tokens=20)
    machine.add(1, tokens=20)
    machine.step()
    machine.scheduler.gate = lambda _: verdict
    machine.add(-1, tokens=5)
    machine.step()
    assert machine.scheduler.num_preemptions == preemptions
    assert len(machine.scheduler.running) == 2


def test_an_aged_request_gives_way_to_nobody_who_came_later() -> None:
    machine = Machine(max_running=1)
    old = machine.add(1, tokens=200)
    for _ in range(int(AGING) + 5):
        machine.step()
    machine.add(0, tokens=5)
    machine.step()
    assert [one.request for one in machine.scheduler.running] == [old]


@pytest.mark.parametrize("queue", [-1, 0, 1])
def test_equals_never_give_way_to_each_other(queue: int) -> None:
    machine = Machine(max_running=1)
    machine.add(queue, tokens=30)
    machine.step()
    machine.add(queue * 5, tokens=3)
    machine.step()
    assert machine.scheduler.num_preemptions == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nobody_starves_and_nobody_is_passed_without_reason(seed: int) -> None:
    """Random traffic of all queues: all end, and nobody starts before one who waits with a better place."""
    draw = random.Random(seed)
    machine = Machine(num_blocks=draw.choice([12, 24, 64]), max_running=draw.randint(1, 6))
    for _ in range(60):
        if draw.random() < 0.5:
            machine.add(draw.choice([-3, -1, 0, 0, 0, 1, 7]), prompt=draw.randint(1, 90), tokens=draw.randint(1, 40))
        machine.step()
    machine.run()
    assert len(machine.ended) == len(machine.requests)
    # Whoever came more than 4 times the aging later was never started before: there is an end to being overtaken.
    first_start = {}
    for position, sequence in enumerate(machine.started):
        first_start.setdefault(sequence.request.arrival, position)
    for one in machine.requests:
        for other in machine.requests:
            if other.arrival_seconds > one.arrival_seconds + 4 * AGING:
                assert first_start[one.arrival] < first_start[other.arrival]


def test_giving_way_changes_no_token() -> None:
    engine = make_engine(HistoryExecutor(24, max_step_tokens=16, max_step_rows=2))
    requests = []
    collector = Collector()
    for index, priority in enumerate((1, 1, 0, -1, 2, 0)):
        request = GenerationRequest(
            request_id=str(index),
            prompt_tokens=tuple(range(3, 20 + index)),
            sampling=SamplingParams(max_tokens=20, seed=index, temperature=1.0),
            priority=priority,
        )
        engine.add(request)
        requests.append(request)
        for _ in range(4):
            collector.take(engine.step())
    while engine.has_work:
        collector.take(engine.step())
    assert engine.status().num_preemptions >= 2
    for request in requests:
        assert collector.outcomes[request.request_id, 0] == isolated(
            request, 0, context_tokens=engine.limits.context_tokens
        )


def test_the_status_counts_each_queue() -> None:
    machine = Machine(max_running=1)
    machine.add(0, tokens=50)
    machine.step()
    machine.add(3)
    machine.step()
    machine.step()
    machine.add(0)
    status = {name: msgspec.structs.astuple(one) for name, one in queue_status(machine.scheduler, machine.now).items()}
    assert status == {"high": (0, 0, 0.0), "normal": (1, 1, 0.0), "batch": (0, 1, 2.0)}
