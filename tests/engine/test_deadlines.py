"""Who ends when, and the queue of deadlines: against a simulation and sorting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openautoglm.engine.admission import AdmissionLimits, make_request
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.deadlines import (
    Beside,
    DeadlineQueue,
    StepPrice,
    Work,
    work_left,
)
from openautoglm.engine.request import Request, SequenceState
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import WordTokenizer

LIMITS = AdmissionLimits(
    context_tokens=512, block_tokens=16, vocab_size=97, eos_token_ids=frozenset({1}), fingerprint="test"
)


def make(deadline_seconds: float | None, *, arrival: int = 0, now_seconds: float = 0.0, prompt: int = 5) -> Request:
    generation = GenerationRequest(
        request_id=str(arrival),
        prompt_tokens=tuple(2 + index % 95 for index in range(prompt)),
        sampling=SamplingParams(max_tokens=50, seed=1),
        deadline_seconds=deadline_seconds,
    )
    return make_request(generation, LIMITS, WordTokenizer(), arrival=arrival, now_seconds=now_seconds)


# ---- who ends when ----

# Whole numbers of seconds: sums are exact, so that equal means equal.
WORKS = st.builds(
    Work,
    prompt_tokens=st.integers(0, 6),
    answer_tokens=st.integers(1, 8),
    deadline_seconds=st.none() | st.integers(0, 300).map(float),
)
PRICES = st.builds(
    StepPrice,
    base_seconds=st.integers(0, 4).map(float),
    prompt_token_seconds=st.integers(0, 4).map(float),
    row_seconds=st.integers(0, 4).map(float),
)


def simulate(
    works: list[Work], price: StepPrice, now_seconds: float, later: Work | None = None, *, after: int = 0
) -> list[float]:
    """Return the ends of all works, step by step: all prompts, then a token of each. `later` joins when `after` of
    the others have ended, the last of the result is its end.
    """
    seconds = now_seconds + sum(work.prompt_tokens for work in works) * price.prompt_token_seconds
    left = {index: work.answer_tokens for index, work in enumerate(works)}
    ends = [0.0] * (len(works) + (later is not None))
    waits = later is not None
    while left or waits:
        if waits and later is not None and len(works) - len(left) >= after:
            seconds += later.prompt_tokens * price.prompt_token_seconds
            left[len(works)] = later.answer_tokens
            waits = False
        seconds += price.base_seconds + len(left) * price.row_seconds
        for index in list(left):
            left[index] -= 1
            if not left[index]:
                del left[index]
                ends[index] = seconds
    return ends


def late_ones(works: list[Work], ends: list[float]) -> set[int]:
    return {
        index
        for index, work in enumerate(works)
        if work.deadline_seconds is not None and ends[index] > work.deadline_seconds
    }


@given(st.lists(WORKS, max_size=8), WORKS, PRICES, st.integers(0, 100))
def test_one_more_is_judged_as_a_simulation_of_all_steps_judges(
    works: list[Work], more: Work, price: StepPrice, now: int
) -> None:
    beside = Beside(works, price, float(now))
    alone, together = simulate(works, price, float(now)), simulate(works, price, float(now), more)
    assert beside.end_seconds(more) == together[-1]
    assert beside.makes_late(more) == bool(late_ones(works, together[:-1]) - late_ones(works, alone))


@given(st.lists(st.tuples(WORKS, st.integers(1, 5)), min_size=1, max_size=8), WORKS, PRICES, st.integers(1, 40))
def test_one_more_waits_for_as_many_ends_as_free_its_blocks(
    held: list[tuple[Work, int]], more: Work, price: StepPrice, missing: int
) -> None:
    works, blocks = [work for work, _ in held], [count for _, count in held]
    order = sorted(range(len(works)), key=lambda index: works[index].answer_tokens)
    after = 0
    while after < len(order) and sum(blocks[index] for index in order[:after]) < missing:
        after += 1
    beside = Beside(works, price, 7.0, num_blocks=blocks)
    assert beside.end_seconds(more, missing_blocks=missing) == simulate(works, price, 7.0, more, after=after)[-1]


# ---- what is left, and when it is due ----


def test_what_is_left_of_a_choice() -> None:
    request = make(3.0, now_seconds=10.0)
    sequence = request.sequences[0]
    sequence.state = SequenceState.WAITING
    assert work_left(sequence, 20) == Work(prompt_tokens=5, answer_tokens=20, deadline_seconds=13.0)
    sequence.state, sequence.num_computed = SequenceState.RUNNING, 5
    sequence.append(7)
    assert work_left(sequence, 20) == Work(prompt_tokens=0, answer_tokens=19, deadline_seconds=13.0)
    assert work_left(sequence, 1).answer_tokens == 1
    sequence.detach()
    sequence.state = SequenceState.WAITING
    assert work_left(sequence, 20).prompt_tokens == 6


@given(st.lists(st.tuples(st.none() | st.integers(1, 20), st.booleans()), max_size=30), st.integers(0, 25))
def test_the_queue_gives_what_is_due_and_unfinished_in_order(
    entries: list[tuple[int | None, bool]], now_seconds: int
) -> None:
    queue, expected = DeadlineQueue(), []
    for arrival, (deadline, finished) in enumerate(entries):
        request = make(deadline, arrival=arrival)
        queue.add(request)
        if finished:
            request.sequences[0].state = SequenceState.FINISHED
        elif deadline is not None and deadline <= now_seconds:
            expected.append((deadline, arrival))
    assert [request.arrival for request in queue.expired(now_seconds)] == [arrival for _, arrival in sorted(expected)]
    assert queue.expired(now_seconds) == []
    queue.expired(1000)
    assert len(queue) == 0
