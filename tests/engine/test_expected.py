"""Lengths of answers and the peak of blocks, against plain counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.engine.expected import WINDOW_ANSWERS, AnswerLengths, guess_length, peak_blocks


def lengths_of(answers: list[int]) -> AnswerLengths:
    lengths = AnswerLengths()
    for answer in answers:
        lengths.add(answer)
    return lengths


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=WINDOW_ANSWERS + 40),
    st.integers(0, 70),
    st.integers(1, 80),
    st.floats(0, 1),
)
def test_the_quantile_is_of_the_longer_ones_of_the_window(
    answers: list[int], num_generated: int, max_tokens: int, quantile: float
) -> None:
    found = lengths_of(answers).expect(num_generated, max_tokens, quantile=quantile, least_answers=1)
    longer = sorted(answer for answer in answers[-WINDOW_ANSWERS:] if answer > num_generated)
    if not longer:
        assert found == max_tokens
        return
    assert found is not None
    assert found == min(max_tokens, longer[int(quantile * (len(longer) - 1))])
    share_not_longer = sum(answer <= found for answer in longer) / len(longer)
    assert found == max_tokens or share_not_longer >= quantile - 1 / len(longer)


def test_too_few_answers_say_nothing() -> None:
    assert lengths_of([5] * 31).expect(0, 100, quantile=0.5) is None
    assert lengths_of([5] * 32).expect(0, 100, quantile=0.5) == 5
    assert lengths_of([5] * 7).expect(0, 100, quantile=0.5, least_answers=8) is None


def test_old_answers_are_forgotten() -> None:
    lengths = lengths_of([1000] * WINDOW_ANSWERS + [3] * WINDOW_ANSWERS)
    assert lengths.expect(0, 2000, quantile=1.0) == 3


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_a_guess_is_one_more_token_at_least_and_never_more_than_may_be(num_generated: int, max_tokens: int) -> None:
    guess = guess_length(num_generated, max_tokens)
    assert guess <= max_tokens
    if num_generated < max_tokens:
        assert guess > num_generated
    if 0 < num_generated < max_tokens - 1:
        middle = 10 ** ((math.log10(num_generated) + math.log10(max_tokens)) / 2)
        assert guess == pytest.approx(max(num_generated + 1, middle), abs=1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_the_peak_is_that_of_a_simulation(needs: list[tuple[int, int]]) -> None:
    """All grow a block at a time; who has grown to its end gives everything back before the next block."""
    peak = 0
    for grown in range(10):
        peak = max(peak, sum(now + grown for now, growth in needs if growth >= grown))
    assert peak_blocks(needs) == peak
