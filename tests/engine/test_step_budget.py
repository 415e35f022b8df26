"""The budget of a step: against sums by hand, and in an engine on a clock that steps advance."""

from __future__ import annotations

import random

import pytest

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.costs import StepCosts, step_load
from openautoglm.engine.engine import Engine
from openautoglm.engine.schedule import ScheduledRow
from openautoglm.engine.step_budget import _AIM, LEAST_TOKENS, MOST_SLOWDOWN, StepBudget
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import SchedulingOptions
from openautoglm.spec.step_cost import StepCost
from tests.engine.history_executor import HistoryExecutor, WordTokenizer
from tests.engine.test_deadlines import make

COST = StepCost(base_seconds=0.02, prompt_token_seconds=0.004, row_seconds=0.005, key_seconds=1e-5, pair_seconds=1e-6)


def decoding(count: int, context: int = 100) -> list[ScheduledRow]:
    return [ScheduledRow(make(None, arrival=index).sequences[0], context - 1, context) for index in range(count)]


def budget_of(**options: object) -> StepBudget:
    return StepBudget(SchedulingOptions(**options), StepCosts(COST))  # type: ignore[arg-type]


@pytest.mark.parametrize("computed", [0, 400])
@pytest.mark.parametrize("num_rows", [1, 8])
def test_a_piece_fills_the_target_and_one_token_more_would_not(num_rows: int, computed: int) -> None:
    budget, rows = budget_of(itl_seconds=0.4), decoding(num_rows)
    first = make(None, arrival=99, prompt=450).sequences[0]
    first.num_computed = computed
    count = budget.limit(rows, 10_000, first, 0.0)
    within, beyond = (
        COST.seconds(step_load([*rows, ScheduledRow(first, computed, computed + tokens)]))
        for tokens in (count, count + 3)
    )
    assert within <= 0.4 * _AIM < beyond


def test_a_prompt_always_goes_on_and_short_ones_are_not_cut() -> None:
    budget, first = budget_of(itl_seconds=0.01), make(None, arrival=9, prompt=90).sequences[0]
    assert budget.limit(decoding(8), 512, first, 0.0) == LEAST_TOKENS
    assert budget.limit(decoding(8), 7, first, 0.0) == 7
    assert budget.status().num_limited_steps == 1


def test_without_a_target_streams_slow_down_by_a_factor_at_most() -> None:
    budget, first = budget_of(eases_streams=True), make(None, arrival=9, prompt=400).sequences[0]
    rows = decoding(4)
    alone = COST.seconds(step_load(rows))
    count = budget.limit(rows, 512, first, 0.0)
    assert COST.seconds(step_load([*rows, ScheduledRow(first, 0, count)])) == pytest.approx(
        MOST_SLOWDOWN * alone * _AIM, rel=0.05
    )
    assert budget.limit([], 512, first, 0.0) == 512
    assert budget_of(aging_seconds=1.0).limit(rows, 512, first, 0.0) == 512


def test_a_first_token_that_would_be_late_goes_before_streams_without_a_target_only() -> None:
    first = make(None, arrival=9, prompt=400).sequences[0]
    rows = decoding(4)
    eased = budget_of(eases_streams=True).limit(rows, 512, first, 0.0)
    steps_seconds = 400 / eased * MOST_SLOWDOWN * COST.seconds(step_load(rows))
    for target, count in ((steps_seconds * 1.1, eased), (steps_seconds * 0.9, 512)):
        assert budget_of(eases_streams=True, ttft_seconds=target).limit(rows, 512, first, 0.0) == count
    # What is late already makes nobody else wait, and a target of the streams is kept.
    assert budget_of(eases_streams=True, ttft_seconds=1.0).limit(rows, 512, first, 1.5) == eased
    assert budget_of(itl_seconds=0.2, ttft_seconds=0.5).limit(rows, 512, first, 0.0) < 60


def test_steps_without_streams_leave_time_for_whoever_comes() -> None:
    first = make(None, arrival=9, prompt=400).sequences[0]
    count = budget_of(ttft_seconds=1.0).limit([], 512, first, 0.0)
    assert COST.seconds(step_load([ScheduledRow(first, 0, count)])) == pytest.approx(0.25 * _AIM, rel=0.05)


@pytest.mark.parametrize("error", [0.5, 0.8, 1.0, 1.3])
def test_care_makes_up_for_a_model_that_is_wrong(error: float) -> None:
    """Steps that take `error` times the prediction, with noise: few are too long, and not much is left unused."""
    draw = random.Random(1)
    budget, rows, first = budget_of(itl_seconds=0.4), decoding(4), make(None, arrival=9, prompt=450).sequences[0]
    late = used = 0.0
    for step in range(4000):
        count = budget.limit(rows, 512, first, 0.0)
        seconds = error * draw.uniform(0.95, 1.05) * COST.seconds(step_load([*rows, ScheduledRow(first, 0, count)]))
        budget.observe(len(rows) + 1, len(rows) + count, seconds)
        if step >= 1000:
            late += seconds > 0.4
            used += seconds
    assert late / 3000 <= 0.01
    assert used / 3000 >= 0.4 * (0.8 if error >= 0.65 else 0.6)


def test_a_step_that_no_prompt_joined_says_nothing_of_the_budget() -> None:
    budget, rows, first = budget_of(itl_seconds=0.4), decoding(4), make(None, arrival=9, prompt=450).sequences[0]
    before = budget.limit(rows, 512, first, 0.0)
    budget.observe(4, 4 + 12, 0.5)  # four rows with twelve drafted tokens
    assert budget.num_late_steps == 0
    assert budget.limit(rows, 512, first, 0.0) == before
    budget.observe(5, 4 + before, 0.5)
    assert budget.num_late_steps == 1
    assert budget.limit(rows, 512, first, 0.0) < before


def test_what_was_held_up_by_something_else_is_no_reason_for_care() -> None:
    budget, rows, first = budget_of(itl_seconds=0.4), decoding(4), make(None, arrival=9, prompt=450).sequences[0]
    before = budget.limit(rows, 512, first, 0.0)
    budget.observe(5, 4 + before, 5.0)
    assert budget.limit(rows, 512, first, 0.0) == before
    budget.observe(5, 4 + before, 0.5)
    after = budget.limit(rows, 512, first, 0.0)
    assert after < before
    # A step that was not filled says nothing of how much more there is room for.
    for _ in range(500):
        budget.observe(5, 4 + after // 2, 0.1)
        assert budget.limit(rows, 512, first, 0.0) == after


class Clocked(HistoryExecutor):
    """Each step takes what COST says."""

    now = 0.0

    def submit(self, batch: StepBatch):  # type: ignore[no-untyped-def]
        counts = batch.row_offsets[1:] - batch.row_offsets[:-1]
        self.now += 0.02 + 0.004 * int(counts.sum() - len(counts)) + 0.005 * len(counts)
        return super().submit(batch)


def test_a_long_prompt_never_stalls_running_streams() -> None:
    """In an engine: while a prompt of 400 tokens is computed, every step gives streams a token within the target."""
    executor = Clocked(200, max_step_tokens=512, max_step_rows=8)
    engine = Engine(
        executor,
        WordTokenizer(),
        eos_token_ids=(100,),
        context_tokens=1000,
        clock=lambda: executor.now,
        scheduling=SchedulingOptions(itl_seconds=0.2),
        step_cost=COST,
    )
    sampling = SamplingParams(max_tokens=200, seed=1, ignore_eos=True)
    for index in range(4):
        engine.add(GenerationRequest(request_id=f"s{index}", prompt_tokens=(1, 2, index), sampling=sampling))
    for _ in range(5):
        engine.step()
    long = GenerationRequest(request_id="long", prompt_tokens=(3,) * 400, sampling=sampling)
    engine.add(long)
    gaps, first = [], None
    while first is None:
        before = executor.now
        events = engine.step()
        gaps.append(executor.now - before)
        assert {event.request_id for event in events} >= {f"s{index}" for index in range(4)}
        first = next((event for event in events if event.request_id == "long"), None)
    assert max(gaps) <= 0.2 * 1.01
    assert len(gaps) == pytest.approx(400 * 0.004 / 0.16, abs=4)
    status = engine.status().budget
    assert status is not None
    assert status.num_limited_steps >= len(gaps) - 1
