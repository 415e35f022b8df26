"""The engine's decisions, one at a time, against what a request yields alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openautoglm.engine.client import GenerationRequest
from openautoglm.errors import (
    ContextOverflowError,
    EngineError,
    InvalidRequestError,
    OutOfMemoryError,
    OverloadedError,
    StepRefusedError,
    WeightReadError,
)
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import (
    EOS,
    VOCAB,
    HistoryExecutor,
    Outcome,
    isolated,
    make_engine,
    out_of_memory_above,
    run_all,
)


def make(name: str, prompt: list[int], **sampling: Any) -> GenerationRequest:
    values = {"seed": 1, "max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling}
    return GenerationRequest(request_id=name, prompt_tokens=tuple(prompt), sampling=SamplingParams(**values))


def run_one(request: GenerationRequest, *, num_blocks: int = 64, **layout: Any) -> Outcome:
    engine = make_engine(HistoryExecutor(num_blocks, **layout))
    outcome = run_all(engine, [request]).outcomes[request.request_id, 0]
    assert outcome == isolated(request, 0, context_tokens=512, nan=layout.get("nan", False))
    return outcome


def test_length_is_the_asked_one() -> None:
    outcome = run_one(make("a", [1, 2, 3]))
    assert (len(outcome.tokens), outcome.finish_reason, outcome.stop_reason) == (8, "length", None)


def test_without_max_tokens_the_context_is_the_end() -> None:
    outcome = run_one(make("a", list(range(20)), max_tokens=None))
    assert (len(outcome.tokens), outcome.finish_reason) == (492, "length")


def test_the_pool_bounds_the_context_too() -> None:
    engine = make_engine(HistoryExecutor(2))
    assert engine.limits.context_tokens == 32
    outcome = run_all(engine, [make("a", [1] * 10, max_tokens=None)]).outcomes["a", 0]
    assert (len(outcome.tokens), outcome.finish_reason) == (22, "length")


def prompt_that_ends(**sampling: Any) -> GenerationRequest:
    """A request whose greedy continuation meets EOS after some tokens."""
    for first in range(200):
        request = make("a", [first % VOCAB, first // VOCAB], ignore_eos=False, max_tokens=64, **sampling)
        outcome = isolated(request, 0, context_tokens=512)
        if outcome.finish_reason == "stop" and 3 <= len(outcome.tokens) <= 20:
            return request
    raise AssertionError("no prompt ends early")


def test_eos_ends_a_choice_without_text() -> None:
    outcome = run_one(prompt_that_ends())
    assert (outcome.tokens[-1], outcome.finish_reason, outcome.stop_reason) == (EOS, "stop", None)
    assert "<eos>" not in outcome.text


def test_ignore_eos_goes_on() -> None:
    request = prompt_that_ends()
    outcome = run_one(make("a", list(request.prompt_tokens), max_tokens=64))
    assert EOS in outcome.tokens[:20]
    assert outcome.finish_reason == "length"


def test_min_tokens_bans_eos_and_stop_tokens_until_then() -> None:
    request = prompt_that_ends()
    ends_at = len(isolated(request, 0, context_tokens=512).tokens)
    stop = isolated(request, 0, context_tokens=512).tokens[0]
    outcome = run_one(
        make("a", list(request.prompt_tokens), ignore_eos=False, max_tokens=64, min_tokens=30, stop_token_ids=(stop,))
    )
    assert len(outcome.tokens) >= 30 > ends_at
    assert not {EOS, stop} & set(outcome.tokens[:30])


def test_stop_tokens_name_themselves_and_are_shown_only_when_asked() -> None:
    plain = isolated(make("a", [5, 6]), 0, context_tokens=512)
    stop = plain.tokens[4]
    outcome = run_one(make("a", [5, 6], stop_token_ids=(stop,)))
    shown = run_one(make("a", [5, 6], stop_token_ids=(stop,), include_stop=True))
    assert (outcome.finish_reason, outcome.stop_reason) == ("stop", stop)
    assert outcome.tokens == shown.tokens == plain.tokens[: plain.tokens.index(stop) + 1]
    assert len(shown.text) > len(outcome.text)


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_strings_across_tokens(include_stop: bool) -> None:
    text = isolated(make("a", [7, 8], max_tokens=40), 0, context_tokens=512).text
    stop = text[11:16]
    outcome = run_one(make("a", [7, 8], max_tokens=40, stop=(stop,), include_stop=include_stop))
    assert (outcome.finish_reason, outcome.stop_reason) == ("stop", stop)
    assert outcome.text == text[: text.index(stop) + (len(stop) if include_stop else 0)]


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    text = isolated(make("a", [7, 8]), 0, context_tokens=512).text
    outcome = run_one(make("a", [7, 8], stop=(text[-2:] + "zzz",)))
    assert outcome.text == text
    assert outcome.finish_reason == "length"


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    text = isolated(make("a", [7, 8], max_tokens=40), 0, context_tokens=512).text
    outcome = run_one(make("a", [7, 8], max_tokens=40, min_tokens=30, stop=(text[:2],)))
    assert len(outcome.tokens) >= 30


def test_penalties_get_the_history() -> None:
    run_one(make("a", list(range(40)), max_tokens=40, repetition_penalty=1.3))
    run_one(make("a", list(range(40)), max_tokens=40, frequency_penalty=0.2))
    run_one(make("a", list(range(40)), max_tokens=40, presence_penalty=-0.2), max_step_tokens=5)


def test_logit_biases_are_sent_and_bans_win() -> None:
    executor = HistoryExecutor(64)
    executor.keep_batches = True
    engine = make_engine(executor)
    request = make("a", [1], logit_bias=((3, 1.5), (EOS, 5.0)), min_tokens=1, max_tokens=2, ignore_eos=False)
    run_all(engine, [request])
    entries = []
    for batch in executor.batches:
        assert batch.sample is not None
        entries.append(dict(zip(batch.sample.bias_tokens.tolist(), batch.sample.bias_values.tolist(), strict=True)))
    assert entries == [{3: 1.5, EOS: float("-inf")}, {3: 1.5, EOS: 5.0}]


def test_logprobs_carry_the_chosen_token_and_the_best() -> None:
    engine = make_engine(HistoryExecutor(64))
    engine.add(make("none", [1, 2]))
    engine.add(make("zero", [1, 2], logprobs=0))
    engine.add(make("two", [1, 2], logprobs=2))
    events = {event.request_id: event for event in engine.step()}
    assert events["none"].logprobs == ()
    (zero,), (two,) = events["zero"].logprobs, events["two"].logprobs
    assert zero.token == two.token == events["two"].tokens[0]
    assert zero.logprob == two.logprob < 0
    assert zero.top == ()
    assert two.top == ((two.token, two.logprob),) * 2


def test_choices_differ_share_the_prompt_and_equal_isolated_runs() -> None:
    executor = HistoryExecutor(64, max_step_tokens=256)
    engine = make_engine(executor)
    request = make("a", list(range(70)), n=4, temperature=1.0)
    engine.add(request)
    engine.step()
    engine.step()
    tables = [sequence.blocks for sequence in engine._scheduler.running]
    assert len(tables) == 4
    assert {tuple(table[:4]) for table in tables} == {(0, 1, 2, 3)}, "64 of 70 tokens are whole blocks"
    assert len({table[4] for table in tables}) == 4
    assert engine.status().num_free_blocks == 64 - 8
    engine = make_engine(HistoryExecutor(64))
    outcomes = run_all(engine, [request]).outcomes
    assert [outcomes["a", c] for c in range(4)] == [isolated(request, c, context_tokens=512) for c in range(4)]
    assert len({outcomes["a", c].tokens for c in range(4)}) == 4


def test_an_absent_seed_is_drawn_anew() -> None:
    engine = make_engine(HistoryExecutor(64))
    requests = [make(f"r{i}", [1, 2, 3], seed=None, temperature=1.0) for i in range(3)]
    outcomes = run_all(engine, requests).outcomes
    assert len({outcome.tokens for outcome in outcomes.values()}) == 3


def test_negative_seeds_are_seeds() -> None:
    run_one(make("a", [1, 2], seed=-1, temperature=1.0))


def test_a_second_request_finds_the_prefix_and_says_so() -> None:
    executor = HistoryExecutor(64)
    engine = make_engine(executor)
    first = run_all(engine, [make("a", list(range(50)))])
    assert first.cached == {"a": 0}
    again = run_all(engine, [make("b", list(range(50)))])
    assert again.cached == {"b": 48}
    assert again.outcomes["b", 0] == first.outcomes["a", 0]
    answer = first.outcomes["a", 0].tokens
    turn = make("c", [*range(50), *answer, 1, 2, 3, 4, 5, 6, 7, 8])
    follow = run_all(engine, [turn])
    assert follow.cached == {"c": 48}, "57 tokens have KV (the last drawn one has none): three whole blocks"
    assert follow.outcomes["c", 0] == isolated(turn, 0, context_tokens=512)
    status = engine.status()
    assert (status.prefix_query_tokens, status.prefix_hit_tokens) == (50 + 50 + 66, 96)
    assert status.prompt_tokens == 166
    assert status.generated_tokens == 24


def test_generated_tokens_are_cached_too() -> None:
    engine = make_engine(HistoryExecutor(64))
    first = run_all(engine, [make("a", list(range(10)), max_tokens=40)]).outcomes["a", 0]
    follow = run_all(engine, [make("b", [*range(10), *first.tokens, 5])])
    assert follow.cached == {"b": 48}


def test_namespaces_are_apart() -> None:
    engine = make_engine(HistoryExecutor(64))
    sampling = SamplingParams(max_tokens=2, seed=1)
    caches = []
    for name, namespace in (("a", "x"), ("b", "y"), ("c", "x")):
        request = GenerationRequest(
            request_id=name, prompt_tokens=tuple(range(40)), sampling=sampling, namespace=namespace
        )
        caches.append(run_all(engine, [request]).cached[name])
    assert caches == [0, 0, 32]


def test_preemption_changes_nothing_and_the_victim_is_the_latest() -> None:
    executor = HistoryExecutor(8, max_step_tokens=64)
    engine = make_engine(executor)
    requests = [make(f"r{i}", [i] * 20, max_tokens=60, logprobs=1, temperature=1.0) for i in range(4)]
    for request in requests:
        engine.add(request)
    collector_outcomes = run_all(engine, []).outcomes
    assert engine.status().num_preemptions > 0
    for request in requests:
        assert collector_outcomes[request.request_id, 0] == isolated(request, 0, context_tokens=128)


def test_a_better_priority_goes_first_and_is_not_the_victim() -> None:
    engine = make_engine(HistoryExecutor(8), max_running=1)
    for name, priority in (("late", 5), ("first", 5), ("urgent", -1)):
        request = make(name, [1, 2, 3], max_tokens=3)
        engine.add(
            GenerationRequest(
                request_id=name, prompt_tokens=request.prompt_tokens, sampling=request.sampling, priority=priority
            )
        )
    order = [event.request_id for event in iterate(engine) if event.finish_reason]
    assert order == ["urgent", "late", "first"]


def iterate(engine: Any) -> Any:
    while engine.has_work:
        yield from engine.step()


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    executor = HistoryExecutor(64, max_step_tokens=8)
    executor.keep_batches = True
    engine = make_engine(executor)
    engine.add(make("short", [1, 2, 3], max_tokens=20))
    engine.step()
    engine.add(make("long", [4] * 50, max_tokens=2))
    reported = [{event.request_id for event in engine.step()} for _ in range(9)]
    assert reported == [{"short"}] * 7 + [{"short", "long"}] * 2
    lengths = [(batch.row_offsets[1:] - batch.row_offsets[:-1]).tolist() for batch in executor.batches[1:]]
    assert lengths == [[1, 7]] * 7 + [[1, 1]] * 2


def test_abort_frees_blocks_at_once_and_reports_every_choice() -> None:
    engine = make_engine(HistoryExecutor(16))
    engine.add(make("a", [1] * 40, n=3))
    engine.add(make("b", [2] * 40))
    engine.step()
    engine.abort("a")
    engine.abort("unknown")
    assert engine.has_work
    events = [event for event in engine.step() if event.request_id == "a"]
    assert [(event.choice, event.finish_reason) for event in events] == [(0, "abort"), (1, "abort"), (2, "abort")]
    assert [event.finish_reason for event in iterate(engine)][-1] == "length"
    assert engine.status().num_waiting == 0
    engine.integrity_check()
    engine.add(make("a", [1] * 40))
    assert run_all(engine, []).finished("a", 1), "the id may be used again"


def test_a_nan_row_ends_its_request_only() -> None:
    requests = [make(f"r{i}", [i, i], max_tokens=60, n=2, temperature=1.0) for i in range(6)]
    collector = run_all(make_engine(HistoryExecutor(64, nan=True)), requests)
    expected = {
        (request.request_id, c): isolated(request, c, context_tokens=512, nan=True)
        for request in requests
        for c in (0, 1)
    }
    failed = {name for (name, _), outcome in expected.items() if outcome.finish_reason == "error"}
    assert 0 < len(failed) < 6
    assert set(collector.errors) == failed
    assert "NaN" in next(iter(collector.errors.values()))
    for key, outcome in collector.outcomes.items():
        if key[0] in failed:
            assert outcome.finish_reason in ("error", "length")
        else:
            assert outcome == expected[key]


def test_out_of_memory_makes_steps_smaller_and_ends_nobody() -> None:
    executor = HistoryExecutor(64, fail=out_of_memory_above(5))
    engine = make_engine(executor)
    requests = [make(f"r{i}", [i] * 40, max_tokens=40) for i in range(8)]
    outcomes = run_all(engine, requests).outcomes
    for request in requests:
        assert outcomes[request.request_id, 0] == isolated(request, 0, context_tokens=512)
    assert executor.trims


def test_steps_grow_again_when_memory_is_back() -> None:
    executor = HistoryExecutor(64, fail=out_of_memory_above(4))
    executor.keep_batches = True
    engine = make_engine(executor)
    engine.add(make("a", [1] * 200, max_tokens=2))
    for _ in range(10):
        engine.step()
    executor.fail = None
    run_all(engine, [make("b", [2] * 400, max_tokens=100)])
    assert max(len(batch.tokens) for batch in executor.batches[-150:]) >= 32


def test_out_of_memory_for_one_token_ends_that_request_after_the_others_gave_way() -> None:
    def fail(batch: StepBatch) -> None:
        if int(batch.positions.max()) >= 30 and 7 in batch.tokens:
            out_of_memory_above(0)(batch)

    engine = make_engine(HistoryExecutor(64, fail=fail))
    good = [make(f"r{i}", [i] * 5, max_tokens=20) for i in range(3)]
    bad = make("bad", [7] * 40)
    collector = run_all(engine, [*good, bad])
    assert set(collector.errors) == {"bad"}
    assert "out of memory" in collector.errors["bad"]
    for request in good:
        assert collector.outcomes[request.request_id, 0] == isolated(request, 0, context_tokens=512)


def test_an_executor_failure_is_raised() -> None:
    def fail(_: StepBatch) -> None:
        raise EngineError("the device is gone")

    engine = make_engine(HistoryExecutor(64, fail=fail))
    engine.add(make("a", [1]))
    with pytest.raises(EngineError, match="the device is gone"):
        engine.step()
    engine.close()
    assert engine._executor.closed


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (make("a", []), InvalidRequestError, "the prompt is empty"),
        (make("a", [1, VOCAB]), InvalidRequestError, "prompt names token 101"),
        (make("a", [-1]), InvalidRequestError, "prompt names token -1"),
        (make("a", [1 << 40]), InvalidRequestError, "prompt names token 1099511627776"),
        (make("a", [1], stop_token_ids=(500,)), InvalidRequestError, "stop_token_ids names token 500"),
        (make("a", [1], logit_bias=((-3, 1.0),)), InvalidRequestError, "logit_bias names token -3"),
        (make("a", [1] * 512), ContextOverflowError, "the prompt has 512 tokens and the context holds 512"),
        (make("a", [1] * 500, max_tokens=13), ContextOverflowError, "lower max_tokens to 12"),
        (make("a", [1] * 500, max_tokens=None, min_tokens=13), ContextOverflowError, "min_tokens 13"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_taken(
    request_: GenerationRequest, error: type[Exception], message: str
) -> None:
    engine = make_engine(HistoryExecutor(64))
    with pytest.raises(error, match=message):
        engine.add(request_)
    assert not engine.has_work
    assert engine.status().prompt_tokens == 0


def test_ids_in_use_are_refused() -> None:
    engine = make_engine(HistoryExecutor(64))
    engine.add(make("a", [1]))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        engine.add(make("a", [2]))


def test_a_full_queue_refuses_with_a_time() -> None:
    engine = make_engine(HistoryExecutor(64), max_running=2, max_queued=3)
    for index in range(5):
        engine.add(make(f"r{index}", [1]))
    with pytest.raises(OverloadedError, match="5 requests run or wait") as refused:
        engine.add(make("r5", [1]))
    assert 1.0 <= refused.value.retry_after_seconds <= 120.0
    run_all(engine, [])
    engine.add(make("r5", [1]))


def test_repeated_greedy_runs_are_identical() -> None:
    runs = set()
    for _ in range(3):
        engine = make_engine(HistoryExecutor(64))
        runs.add(run_all(engine, [make("a", [1, 2, 3], max_tokens=64, seed=None)]).outcomes["a", 0])
    assert len(runs) == 1


def test_cache_groups_of_different_blocks_are_refused() -> None:
    executor = HistoryExecutor(4)
    layout = executor.layout()
    group = layout.groups[0]
    executor._layout = replace(layout, groups=(group, replace(group, block_tokens=32)))
    with pytest.raises(EngineError, match=r"\[16, 32\]"):
        make_engine(executor)


def test_a_refused_step_ends_the_request_at_fault_alone() -> None:
    poison = 0.125

    def refuse(batch: StepBatch) -> None:
        if batch.sample is not None and (batch.sample.top_ps == poison).any():
            raise StepRefusedError("top_p")

    requests = [make(name, [index, 5, 9]) for index, name in enumerate("abc")]
    bad = make("bad", [7, 7], temperature=1.0, top_p=poison, n=2)
    done = run_all(make_engine(HistoryExecutor(64, fail=refuse)), [requests[0], bad, *requests[1:]])
    for request in requests:
        assert done.outcomes[request.request_id, 0] == isolated(request, 0, context_tokens=512)
    assert {done.outcomes["bad", choice].finish_reason for choice in range(2)} == {"error"}


def test_a_part_of_a_refused_step_that_runs_out_of_memory_takes_no_other_along() -> None:
    fails = [StepRefusedError("something"), OutOfMemoryError("full")]

    def fail(batch: StepBatch) -> None:
        decodes = len(batch.tokens) == len(batch.row_offsets) - 1
        # A step of two is refused; then the first of them alone finds no memory, and the other is set back for it.
        if decodes and fails and len(batch.tokens) == len(fails):
            raise fails.pop(0)

    engine = make_engine(HistoryExecutor(64, fail=fail))
    requests = [make(name, [index, 5, 9], max_tokens=30) for index, name in enumerate("ab")]
    done = run_all(engine, requests)
    assert fails == []
    assert engine.scheduler.num_preemptions == 1
    for request in requests:
        assert done.outcomes[request.request_id, 0] == isolated(request, 0, context_tokens=512)
    engine.integrity_check()


def test_a_step_whose_weights_cannot_be_read_ends_its_requests_and_later_ones_pass() -> None:
    num_steps = 0

    def lose_one(_: StepBatch) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            raise WeightReadError("weights on disk: it ends at byte 7")

    engine = make_engine(HistoryExecutor(64, fail=lose_one))
    lost = run_all(engine, [make("a", [1, 2, 3], max_tokens=64), make("b", [4, 5], max_tokens=64, n=2)])
    assert {outcome.finish_reason for outcome in lost.outcomes.values()} == {"error"}
    engine.integrity_check()
    assert engine.status().num_running == 0
    later = make("c", [1, 2, 3])
    assert run_all(engine, [later]).outcomes["c", 0] == isolated(later, 0, context_tokens=512)
