"""What steps cost, learned from steps: against a plain solver, and with a prior."""

from __future__ import annotations

import random

import numpy as np
import pytest

from openautoglm.engine.costs import LEAST_STEPS, MEMORY_STEPS, StepCosts, step_load
from openautoglm.engine.schedule import ScheduledRow
from openautoglm.spec.step_cost import StepCost, StepLoad
from tests.engine.test_deadlines import make

PRIOR = StepCost(base_seconds=0.02, prompt_token_seconds=0.004, row_seconds=0.002, key_seconds=1e-6, pair_seconds=1e-7)


def load(prompt: int, rows: int, keys: int = 0, pairs: int = 0) -> StepLoad:
    return StepLoad(num_prompt_tokens=prompt, num_rows=rows, num_keys=keys, num_pairs=pairs)


def test_the_load_of_a_step_counts_tokens_keys_and_pairs() -> None:
    sequences = [make(None, arrival=index, prompt=60).sequences[0] for index in range(3)]
    rows = [ScheduledRow(sequences[0], 59, 60), ScheduledRow(sequences[1], 16, 48), ScheduledRow(sequences[2], 0, 1)]
    by_hand = sum(position + 1 for position in range(16, 47))
    found = step_load(rows)
    assert (found.num_prompt_tokens, found.num_rows, found.num_keys) == (31, 3, 60 + 48 + 1)
    assert found.num_pairs == pytest.approx(by_hand, rel=0.02)


def test_drafted_tokens_are_work_too() -> None:
    sequence = make(None, arrival=0, prompt=60).sequences[0]
    assert step_load([ScheduledRow(sequence, 59, 60, (1, 2, 3))]) == step_load([ScheduledRow(sequence, 59, 63)])
    assert step_load([ScheduledRow(sequence, 59, 60, (1, 2, 3))]).num_prompt_tokens == 3


def test_the_cost_is_the_weighted_least_squares_of_numpy() -> None:
    draw = random.Random(1)
    costs, terms, seconds = StepCosts(), [], []
    for _ in range(300):
        prompt, rows = draw.choice([0, 0, 0, 40, 500]), draw.randint(1, 32)
        keys, pairs = rows * draw.randint(1, 4000), prompt * draw.randint(0, 4000)
        terms.append((1.0, prompt, rows, keys, pairs))
        exact = PRIOR.seconds(load(prompt, rows, keys, pairs))
        seconds.append(draw.uniform(0.9, 1.1) * exact)
        costs.add(load(prompt, rows, keys, pairs), seconds[-1])
    # Relative to what is expected: the fit itself, found by going on until nothing changes.
    expected = np.array(seconds)
    for _ in range(10):
        root = np.sqrt((1 - 1 / MEMORY_STEPS) ** np.arange(299, -1, -1)) / expected
        solved = np.linalg.lstsq(np.array(terms) * root[:, None], np.array(seconds) * root, rcond=None)[0]
        expected = np.array(terms) @ solved
    cost = costs.cost()
    assert cost is not None
    for prompt, rows, keys, pairs in (
        (0, 1, 500, 0),
        (0, 32, 60_000, 0),
        (100, 8, 8000, 50_000),
        (500, 1, 4000, 900_000),
    ):
        by_numpy = float(np.array((1.0, prompt, rows, keys, pairs)) @ solved)
        assert cost.seconds(load(prompt, rows, keys, pairs)) == pytest.approx(by_numpy, rel=0.02)


def test_a_price_changes_with_the_machine() -> None:
    costs = StepCosts()
    for factor in (1.0, 3.0):
        for step in range(5 * MEMORY_STEPS):
            prompt, rows = (step % 3) * 100, 1 + step % 7
            costs.add(load(prompt, rows), factor * (0.01 + 0.001 * prompt + 0.002 * rows))
    price = costs.price()
    assert price is not None
    assert price.decode_seconds(4) == pytest.approx(3 * 0.018, rel=0.05)


def test_steps_that_something_else_held_up_say_little() -> None:
    costs = StepCosts()
    for step in range(MEMORY_STEPS):
        prompt, rows = (step % 3) * 100, 1 + step % 7
        costs.add(load(prompt, rows), (0.01 + 0.001 * prompt + 0.002 * rows) * (20 if step % 10 == 0 else 1))
    price = costs.price()
    assert price is not None
    assert price.decode_seconds(4) == pytest.approx(0.018, rel=0.2)


def test_the_first_step_prices_tokens_and_gives_nobody_up() -> None:
    costs = StepCosts()
    assert costs.guess() is None
    costs.add(load(490, 10), 2.0)
    guess = costs.guess()
    assert guess is not None
    assert guess.prompt_token_seconds == pytest.approx(0.004, rel=0.02)
    assert guess.decode_seconds(1) < 0.01
    for _ in range(LEAST_STEPS - 1):
        assert costs.price() is None
        costs.add(load(0, 10), 0.04)
    price = costs.price()
    assert price is not None
    assert price.decode_seconds(10) == pytest.approx(0.04, rel=0.02)


def test_equal_steps_leave_no_price_negative_or_wild() -> None:
    costs = StepCosts()
    for _ in range(100):
        costs.add(load(0, 1, 30), 0.05)
    price = costs.price()
    assert price is not None
    assert price.decode_seconds(1) == pytest.approx(0.05, rel=1e-3)
    assert 0 <= price.prompt_token_seconds <= 0.05
    assert 0 <= price.row_seconds <= 0.051


def test_a_prior_stands_until_steps_say_more_and_where_they_say_nothing() -> None:
    costs = StepCosts(PRIOR)
    assert costs.cost() == PRIOR
    # A machine three times as slow, of which only decoding of 4 rows is seen.
    for _ in range(50):
        costs.add(load(0, 4, 400), 3 * PRIOR.seconds(load(0, 4, 400)))
    cost = costs.cost()
    assert cost is not None
    assert cost.seconds(load(0, 4, 400)) == pytest.approx(3 * PRIOR.seconds(load(0, 4, 400)), rel=0.01)
    assert cost.pair_seconds == pytest.approx(PRIOR.pair_seconds, rel=0.01)
    # Prompts were never seen: no cheaper than they were taken to be.
    assert cost.prompt_token_seconds >= PRIOR.prompt_token_seconds * 0.9
    for _ in range(20):
        costs.add(load(200, 1, 200, 20_000), 3 * PRIOR.seconds(load(200, 1, 200, 20_000)))
    seen = costs.cost()
    assert seen is not None
    assert seen.prompt_token_seconds == pytest.approx(3 * PRIOR.prompt_token_seconds, rel=0.05)
