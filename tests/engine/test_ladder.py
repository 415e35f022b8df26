"""The ladder on an engine: rungs in order under both pressures, budgets met between steps, and the same tokens."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.ladder import Ladder, LoadedBytes
from openautoglm.errors import InvalidRequestError, MemoryPressureError, OverloadedError
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.pressure import headroom_bytes
from openautoglm.spec.pressure import MemorySignals, Room, Rung
from openautoglm.spec.sampling import SamplingParams
from openautoglm.units import GIB, MIB
from tests.engine.clock import Clock
from tests.engine.history_executor import Collector, HistoryExecutor, isolated, make_engine

BLOCK_BYTES = MIB
BUDGET = 2 * GIB


def request(
    name: str, *, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 20, seed: int = 0
) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8, ignore_eos=True)
    return GenerationRequest(request_id=name, prompt_tokens=prompt, sampling=sampling)


class Machine:
    """A machine whose memory is the pool's blocks and what another process holds; the oracle of what is left."""

    def __init__(self, *, num_blocks: int = 64, **settings: object) -> None:
        self.clock = Clock()
        self.executor = HistoryExecutor(num_blocks)
        layout = self.executor._layout
        groups = tuple(replace(group, block_bytes=BLOCK_BYTES) for group in layout.groups)
        self.executor._layout = replace(layout, groups=groups)
        self.engine: Engine = make_engine(self.executor, clock=self.clock, **settings)
        self.ledger = Ledger(BUDGET)
        self.loaded = LoadedBytes(
            budget_bytes=BUDGET, fixed_bytes=BUDGET - num_blocks * BLOCK_BYTES, block_bytes=BLOCK_BYTES
        )
        self.ladder = Ladder(self.engine, self.loaded, self.ledger, clock=self.clock)
        self.num_blocks = num_blocks
        self.hog_bytes = 0
        self.announced: int | None = None
        self.collector = Collector()

    def left_bytes(self) -> int:
        spare = (self.num_blocks - self.engine.pool.num_blocks) * BLOCK_BYTES
        return headroom_bytes(BUDGET) - self.hog_bytes + spare

    def look(self) -> MemorySignals:
        room = Room(source="machine", limit_bytes=BUDGET, left_bytes=self.left_bytes())
        return MemorySignals(tree_bytes=0, rooms=(room,), announced_bytes=self.announced)

    def tick(self, seconds: float = 0.1) -> None:
        self.clock.now += seconds
        self.ladder.tick(self.look())
        self.engine.integrity_check()

    def step(self) -> None:
        self.clock.now += 0.01
        self.collector.take(self.engine.step())
        self.engine.integrity_check()

    def finish(self) -> None:
        for _ in range(20000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine is not idle")


def add_many(machine: Machine, count: int, *, tokens: int = 40, prompt: int = 30) -> list:
    requests = [
        request(f"r{index}", prompt=tuple((index * 7 + at) % 90 for at in range(prompt)), max_tokens=tokens, seed=index)
        for index in range(count)
    ]
    for one in requests:
        machine.engine.add(one)
    return requests


def check_outputs(machine: Machine, requests: Sequence) -> None:
    for one in requests:
        assert machine.collector.outcomes[one.request_id, 0] == isolated(one, 0, context_tokens=512)


def test_a_calm_machine_does_nothing() -> None:
    machine = Machine()
    assert not machine.ladder.wants(machine.look())
    machine.tick()
    assert machine.ladder.rung is Rung.NONE
    assert machine.engine.pool.num_blocks == 64


def test_idle_prefixes_go_first_and_are_enough() -> None:
    machine = Machine()
    requests = add_many(machine, 6)
    machine.finish()
    assert machine.engine.pool.num_cached > 10
    machine.hog_bytes = 40 * MIB
    assert machine.ladder.wants(machine.look())
    machine.tick()
    assert machine.ladder.rung is Rung.DROP_PREFIX
    assert machine.left_bytes() >= headroom_bytes(BUDGET)
    assert machine.engine.scheduler.admits
    check_outputs(machine, requests)


@pytest.mark.parametrize(("hog_bytes", "level"), [(0, logging.INFO), (40 * MIB, logging.WARNING)])
def test_a_full_pool_warns_nobody(caplog: pytest.LogCaptureFixture, hog_bytes: int, level: int) -> None:
    caplog.set_level(logging.INFO, logger="openautoglm")
    machine = Machine()
    add_many(machine, 12, tokens=60)
    while machine.ladder.rung is Rung.NONE:
        machine.hog_bytes = hog_bytes
        machine.step()
        machine.tick()
    entered = next(record for record in caplog.records if "enters drop_prefix" in record.getMessage())
    assert entered.levelno == level


def test_what_a_full_pool_began_is_told_when_memory_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="openautoglm")
    machine = Machine()
    add_many(machine, 12, tokens=60)
    while machine.ladder.rung is Rung.NONE:
        machine.step()
        machine.tick()
    machine.hog_bytes = 40 * MIB
    for _ in range(3):
        machine.tick()
    told = [record.levelno for record in caplog.records if "enters drop_prefix" in record.getMessage()]
    assert told == [logging.INFO, logging.WARNING]
    assert machine.ladder.transitions[Rung.DROP_PREFIX] == 1


def test_rungs_come_in_order_and_go_in_reverse(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    requests = add_many(machine, 12, tokens=60)
    for _ in range(8):
        machine.step()
    machine.hog_bytes = headroom_bytes(BUDGET) + 60 * MIB
    machine.tick()
    assert machine.ladder.rung is Rung.REFUSE
    assert [machine.ladder.transitions[rung] for rung in Rung if rung] == [1] * 6
    assert len(machine.engine.scheduler.running) == 1
    with pytest.raises(MemoryPressureError) as refused:
        machine.engine.add(request("late"))
    assert refused.value.http_status == 503
    assert refused.value.retry_after_seconds >= 1
    before = [r for r in caplog.messages if "enters" in r]
    assert [message.split()[3] for message in before] == [rung.label for rung in Rung if rung]
    machine.hog_bytes = 0
    left = []
    for _ in range(200):
        held = machine.ladder.rung
        machine.step()
        machine.tick()
        if machine.ladder.rung is not held:
            left.append(held)
        if machine.ladder.rung is Rung.NONE:
            break
    assert left == list(Rung)[:0:-1]
    machine.tick()
    assert machine.engine.pool.num_blocks == 64
    machine.engine.add(request("again"))
    machine.finish()
    check_outputs(machine, requests)


def test_the_first_in_order_goes_on_whatever_is_taken_away() -> None:
    machine = Machine()
    requests = add_many(machine, 10, tokens=80)
    machine.step()
    machine.hog_bytes = 10 * GIB
    for _ in range(3000):
        if not machine.engine.has_work:
            break
        machine.step()
        machine.tick(0.02)
    assert not machine.engine.has_work
    assert machine.ladder.rung is Rung.REFUSE
    check_outputs(machine, requests)


def test_touched_requests_tell_so() -> None:
    machine = Machine()
    add_many(machine, 12, tokens=60)
    for _ in range(8):
        machine.step()
    machine.hog_bytes = headroom_bytes(BUDGET) + 60 * MIB
    machine.tick()
    machine.hog_bytes = 0
    machine.finish()
    records = [machine.engine.explain(f"r{index}") for index in range(12)]
    preempted = [record for record in records if record is not None and "preempt" in record.rungs]
    assert preempted
    for record in preempted:
        assert record.choices[0].num_preemptions > 0
        assert record.choices[0].preempted_seconds > 0
    untouched = machine.engine.explain("r0")
    assert untouched is not None
    assert "preempt" not in untouched.rungs


def test_a_full_pool_pauses_admission_and_takes_nothing_away() -> None:
    machine = Machine(num_blocks=20)
    requests = add_many(machine, 16, tokens=100)
    worst = Rung.NONE
    while machine.engine.has_work:
        machine.step()
        machine.tick(0.02)
        worst = max(worst, machine.ladder.rung)
        assert machine.engine.pool.num_blocks == 20
    assert worst >= Rung.STOP_ADMISSION
    check_outputs(machine, requests)


def test_a_budget_is_met_between_two_steps() -> None:
    machine = Machine()
    requests = add_many(machine, 12, tokens=100)
    for _ in range(5):
        machine.step()
    for budget_blocks in (20, 64, 33, 20, 64):
        machine.ladder.set_budget(machine.loaded.fixed_bytes + budget_blocks * BLOCK_BYTES)
        machine.engine.integrity_check()
        assert machine.engine.pool.num_blocks == budget_blocks
        assert machine.ladder.budget_bytes == machine.loaded.fixed_bytes + budget_blocks * BLOCK_BYTES
        assert machine.ledger.budget_bytes == machine.ladder.budget_bytes
        for _ in range(15):
            machine.step()
    machine.finish()
    check_outputs(machine, requests)


def test_a_budget_below_what_a_request_may_need_is_met_when_it_has_ended() -> None:
    machine = Machine()
    requests = [request("long", prompt=tuple(range(90)) * 4, max_tokens=100, seed=1)]
    machine.engine.add(requests[0])
    machine.step()
    machine.ladder.set_budget(machine.loaded.fixed_bytes + 10 * BLOCK_BYTES)
    assert machine.engine.pool.num_blocks == 29  # ceil(460 / 16)
    machine.finish()
    machine.tick()
    assert machine.engine.pool.num_blocks == 10
    check_outputs(machine, requests)


def test_a_budget_without_a_block_is_refused() -> None:
    machine = Machine()
    with pytest.raises(InvalidRequestError, match="at least"):
        machine.ladder.set_budget(machine.loaded.fixed_bytes)
    assert machine.ladder.budget_bytes == BUDGET
    assert machine.engine.pool.num_blocks == 64


def test_memory_high_announces_and_takes_back() -> None:
    machine = Machine()
    machine.announced = machine.loaded.fixed_bytes + 16 * BLOCK_BYTES
    assert machine.ladder.wants(machine.look())
    machine.tick()
    assert machine.engine.pool.num_blocks == 16
    assert machine.ladder.budget_bytes == machine.announced
    machine.announced = None
    machine.tick()
    assert machine.engine.pool.num_blocks == 64
    assert machine.ladder.budget_bytes == BUDGET


@pytest.mark.parametrize("seed", range(12))
def test_random_hogs_and_budgets_change_no_token(seed: int) -> None:
    randomness = random.Random(seed)
    machine = Machine(num_blocks=40)
    requests = []
    for round_ in range(150):
        if randomness.random() < 0.3:
            tokens = tuple(randomness.randrange(90) for _ in range(randomness.randint(1, 120)))
            one = request(f"q{round_}", prompt=tokens, max_tokens=randomness.randint(1, 80), seed=round_)
            try:
                machine.engine.add(one)
            except MemoryPressureError:
                assert machine.ladder.rung is Rung.REFUSE
            except OverloadedError:
                assert machine.engine.pool.num_blocks < machine.num_blocks
            else:
                requests.append(one)
        if randomness.random() < 0.1:
            machine.hog_bytes = randomness.choice([0, 0, 30, 60, 90]) * MIB
        if randomness.random() < 0.05:
            machine.ladder.set_budget(machine.loaded.fixed_bytes + randomness.randint(14, 40) * BLOCK_BYTES)
        machine.tick(randomness.random())
        machine.step()
    machine.hog_bytes = 0
    for _ in range(3000):
        machine.step()
        machine.tick()
        if not machine.engine.has_work:
            break
    assert not machine.engine.has_work
    check_outputs(machine, requests)
