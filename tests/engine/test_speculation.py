"""Prompt lookup: drafts change nothing but the number of steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.engine.batch import build_batch
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.speculation import (
    LEAST_MATCH_TOKENS,
    LEAST_STEPS,
    MOST_MATCH_TOKENS,
    MOST_ROWS,
    MOST_STEP_TOKENS,
    STEPS_BEFORE_TRIAL,
    _Speed,
    find_draft,
)
from openautoglm.errors import StepRefusedError
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.reuse import Speculation
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import Collector, HistoryExecutor, Outcome, make_engine, out_of_memory_above, run_all

PLAIN = SamplingParams(max_tokens=60, temperature=0.0, seed=3, ignore_eos=True)


def engine_of(mode: Speculation, *, num_blocks: int = 64, memory_tokens: int | None = 2, **options: object) -> Engine:
    executor = HistoryExecutor(num_blocks, memory_tokens=memory_tokens, **options)  # type: ignore[arg-type]
    executor.keep_batches = True
    return make_engine(executor, speculation=mode)


def batches(engine: Engine) -> list[StepBatch]:
    executor = engine._executor
    assert isinstance(executor, HistoryExecutor)
    return executor.batches


def requests(sampling: SamplingParams, count: int = 1, *, first: int = 1) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=f"r{number}",
            prompt_tokens=tuple((first + number + index * index) % 101 for index in range(20 + 7 * number)),
            sampling=replace(sampling, seed=number),
        )
        for number in range(count)
    ]


def both(wanted: list[GenerationRequest], **options: object) -> tuple[Engine, Engine, dict[tuple[str, int], Outcome]]:
    """Run with and without drafts; the outcomes are the same to the last logprob."""
    engines = [engine_of(mode, **options) for mode in (Speculation.OFF, Speculation.PROMPT_LOOKUP)]  # type: ignore[arg-type]
    outcomes = [run_all(engine, wanted).outcomes for engine in engines]
    assert outcomes[0] == outcomes[1]
    return engines[0], engines[1], outcomes[0]


def naive_draft(tokens: list[int], most_tokens: int) -> list[int] | None:
    """The definition, word for word."""
    best: tuple[int, int] | None = None
    for end in range(len(tokens) - 1):
        length = 0
        while length < MOST_MATCH_TOKENS and length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length >= LEAST_MATCH_TOKENS and (best is None or (length, end) >= best):
            best = (length, end)
    if best is None:
        return None
    follows = tokens[best[1] + 1 :]
    return [follows[index % len(follows)] for index in range(most_tokens)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 9))
def test_a_draft_is_what_followed_the_longest_and_latest_match(tokens: list[int], most_tokens: int) -> None:
    draft = find_draft(np.array(tokens, dtype=np.int32), most_tokens)
    assert (None if draft is None else draft.tolist()) == naive_draft(tokens, most_tokens)


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        replace(PLAIN, temperature=0.7, n=3),
        replace(PLAIN, logprobs=3, stop=("abcab", "xyab"), include_stop=True),
        replace(PLAIN, repetition_penalty=1.2, presence_penalty=0.5),
        replace(PLAIN, ignore_eos=False, min_tokens=30, stop_token_ids=(5, 6, 7)),
    ],
    ids=["greedy", "sampled", "stops", "penalties", "bans"],
)
def test_answers_are_the_same_in_fewer_steps(sampling: SamplingParams) -> None:
    without, drafted, outcomes = both(requests(sampling, 3), memory_tokens=1)
    status = drafted.status().speculation
    assert status is not None
    assert without.status().speculation is None
    if sampling.temperature == 0.0:
        assert status.accepted_tokens > 0
        assert drafted.status().num_steps <= without.status().num_steps
    assert drafted.status().generated_tokens == sum(len(outcome.tokens) for outcome in outcomes.values())
    for engine in (without, drafted):
        assert engine.pool.num_live == 0


def test_a_text_that_repeats_itself_comes_many_tokens_at_a_time() -> None:
    without, drafted, outcomes = both(requests(replace(PLAIN, max_tokens=200), 1), memory_tokens=1)
    status = drafted.status().speculation
    assert status is not None
    assert status.accepted_tokens <= status.draft_tokens
    gained = without.status().num_steps - drafted.status().num_steps
    assert gained == status.accepted_tokens > 100, "each right token saves a step, and nothing else does"
    assert len(outcomes["r0", 0].tokens) == 200


def test_nothing_is_drafted_beyond_the_end_or_the_steps_size() -> None:
    wanted = requests(replace(PLAIN, max_tokens=11), 2)
    _, drafted, _ = both(wanted, memory_tokens=1)
    longest = {len(request.prompt_tokens) + 11 for request in wanted}
    for batch in batches(drafted):
        sizes = np.diff(batch.row_offsets)
        assert batch.positions.max() < max(longest) - 1, "the last token is never computed"
        if (sizes > 1).any() and batch.positions.min() >= 20:
            assert len(batch.tokens) <= MOST_STEP_TOKENS


def test_large_batches_are_not_drafted() -> None:
    drafted = engine_of(Speculation.PROMPT_LOOKUP, memory_tokens=1)
    run_all(drafted, requests(replace(PLAIN, max_tokens=40), MOST_ROWS + 1))
    for batch in batches(drafted):
        if len(batch.row_offsets) - 1 > MOST_ROWS and batch.sample is not None:
            assert len(batch.sample.token_indices) <= len(batch.row_offsets) - 1


def test_pressure_sets_drafted_sequences_back_and_changes_nothing() -> None:
    _, drafted, _ = both(requests(replace(PLAIN, max_tokens=90), 4), num_blocks=14, memory_tokens=1)
    assert drafted.status().num_preemptions > 0
    accepted = drafted.status().speculation
    assert accepted is not None
    assert accepted.accepted_tokens > 0


def test_a_step_that_runs_out_of_memory_is_tried_without_drafts() -> None:
    both(requests(replace(PLAIN, max_tokens=50), 2), memory_tokens=1, fail=out_of_memory_above(6))


def test_speeds_are_told_what_their_own_step_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafted steps of two are refused now and then and computed one by one: nothing of that counts for a later one."""
    num_drafted = 0

    def refuse(batch: StepBatch) -> None:
        nonlocal num_drafted
        rows = len(batch.row_offsets) - 1
        num_drafted += rows == 2 and rows < len(batch.tokens) <= MOST_STEP_TOKENS
        if rows == 2 and len(batch.tokens) > rows and num_drafted % 3 == 0:
            raise StepRefusedError("now and then")

    told: list[int] = []
    monkeypatch.setattr(_Speed, "add", lambda _, num_tokens, __: told.append(num_tokens))
    engine = engine_of(Speculation.PROMPT_LOOKUP, memory_tokens=1, fail=refuse)
    for one in requests(replace(PLAIN, max_tokens=120), 2):
        engine.add(one)
    num_refused = 0
    while engine.has_work:
        before = engine.status().generated_tokens
        told.clear()
        engine.step()
        drawn = engine.status().generated_tokens - before
        assert told in ([], [drawn])
        num_refused += not told and drawn > 2
    assert num_refused > 0, "no refused step had drafts that were right"


def test_a_nan_behind_a_wrong_draft_ends_nothing() -> None:
    both(requests(replace(PLAIN, max_tokens=120), 4, first=40), nan=True)


def test_auto_rests_where_drafts_fail() -> None:
    drafted = engine_of(Speculation.AUTO, memory_tokens=None)
    wanted = requests(replace(PLAIN, max_tokens=300), 1)
    # Every beginning of three tokens is there already, and goes on differently each time.
    looped = replace_prompt(wanted[0], tuple(range(101)) * 2)
    run_all(drafted, [looped])
    eager = engine_of(Speculation.PROMPT_LOOKUP, memory_tokens=None)
    run_all(eager, [looped])
    rested, tried = drafted.status().speculation, eager.status().speculation
    assert rested is not None
    assert tried is not None
    assert rested.drafts <= tried.drafts


def replace_prompt(request: GenerationRequest, prompt: tuple[int, ...]) -> GenerationRequest:
    return GenerationRequest(request_id=request.request_id, prompt_tokens=prompt, sampling=request.sampling)


def test_auto_stops_where_steps_with_drafts_take_longer_than_they_save() -> None:
    now = 0.0

    def slow(batch: StepBatch) -> None:
        nonlocal now
        now += 1.0 + 5.0 * (len(batch.tokens) - 1)

    executor = HistoryExecutor(64, memory_tokens=1, fail=slow)
    engine = make_engine(executor, speculation=Speculation.AUTO, clock=lambda: now)
    sampling = replace(PLAIN, max_tokens=400, temperature=1e-9)
    collector = Collector()
    engine.add(requests(sampling)[0])
    while engine.has_work:
        collector.take(engine.step())
    status = engine.status()
    assert status.speculation is not None
    # It must have seen both kinds of steps to know, and tries again now and then.
    assert status.speculation.drafts <= 2 * LEAST_STEPS + 400 / STEPS_BEFORE_TRIAL * LEAST_STEPS
    assert status.num_steps > 200


def test_batches_without_drafts_are_what_they_were() -> None:
    engine = engine_of(Speculation.OFF)
    for request in requests(PLAIN, 3):
        engine.add(request)
    engine.step()
    engine.step()
    schedule = engine.scheduler.schedule()
    batch = build_batch(schedule, num_groups=1)
    assert batch.sample is not None
    assert batch.sample.token_indices.dtype == np.int32
    assert batch.sample.token_indices.tolist() == [0, 1, 2]
