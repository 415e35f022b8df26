"""The simulator of overload: its clock against sums by hand, its traces, and what it calls needless."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overload.simulator import Server, capacity, judge, needless_in_whole, needless_rejects, play
from overload.trace import Arrival, TraceShape, make_trace

SERVER = Server(
    num_blocks=200, max_step_tokens=64, max_running=4, base_seconds=1.0, prompt_token_seconds=0.25, row_seconds=0.5
)


def arrival(
    index: int, *, seconds: float = 0.0, prompt: int = 4, answer: int = 3, deadline: float = 80_000.0, most: int = 50
) -> Arrival:
    return Arrival(
        index=index,
        seconds=seconds,
        prompt_tokens=prompt,
        max_tokens=most,
        answer_tokens=answer,
        deadline_seconds=deadline,
    )


def by_hand(arrivals: list[Arrival]) -> dict[int, float]:
    """The ends on SERVER of requests that wait from the start, first come, first served: prompts within a step's
    tokens, decoding rows first, a row for whatever computes.
    """
    waiting, running, ends, now = list(arrivals), [], {}, 0.0
    while waiting or running:
        budget, computed = SERVER.max_step_tokens, 0
        for one in running:
            count = min(budget, one["prompt"]) if one["prompt"] else 1
            one["now"] = count
        # Decoding rows are served first; with four of them and 64 tokens nobody is left out.
        budget -= sum(1 for one in running if not one["prompt"])
        for one in running:
            if one["prompt"]:
                one["now"] = min(budget, one["prompt"])
                budget -= one["now"]
        while waiting and budget and len(running) < SERVER.max_running:
            new = waiting.pop(0)
            one = {"index": new.index, "prompt": new.prompt_tokens, "left": new.answer_tokens, "now": 0}
            one["now"] = min(budget, one["prompt"])
            budget -= one["now"]
            running.append(one)
        rows = [one for one in running if one["now"]]
        computed = sum(one["now"] for one in rows)
        now += (
            SERVER.base_seconds + SERVER.prompt_token_seconds * (computed - len(rows)) + SERVER.row_seconds * len(rows)
        )
        for one in rows:
            if one["prompt"] > one["now"]:
                one["prompt"] -= one["now"]
                continue
            one["prompt"] = 0
            one["left"] -= 1
            if not one["left"]:
                ends[one["index"]] = now
                running.remove(one)
    return ends


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 8)), min_size=1, max_size=9))
def test_a_run_ends_when_a_plain_loop_says(sizes: list[tuple[int, int]]) -> None:
    arrivals = [arrival(index, prompt=prompt, answer=answer) for index, (prompt, answer) in enumerate(sizes)]
    run = play(SERVER, arrivals, deadlines=False)
    assert run.rejects == {}
    assert run.end_seconds == pytest.approx(by_hand(arrivals))
    assert capacity(SERVER, arrivals) == pytest.approx(len(arrivals) / max(by_hand(arrivals).values()))


def test_what_arrives_later_waits_for_nobody() -> None:
    # Alone: a step of 1 + 3 * 0.25 + 0.5 seconds and two of 1.5.
    run = play(SERVER, [arrival(0), arrival(1, seconds=100.0)])
    assert run.end_seconds == pytest.approx({0: 5.25, 1: 105.25})


def test_late_is_a_reject_with_and_without_deadlines_in_the_engine() -> None:
    trace = [arrival(0, deadline=5.0)]
    assert play(SERVER, trace, deadlines=False).rejects == {0: "late"}
    assert play(SERVER, trace).rejects.keys() == {0}
    assert play(SERVER, [arrival(0, deadline=5.25)]).rejects == {}


def test_needless_is_what_could_have_been_admitted() -> None:
    # Two that fit one after the other or together, told to have been rejected: each alone is needless.
    easy = [arrival(0, deadline=20.0), arrival(1, deadline=20.0)]
    assert needless_rejects(SERVER, easy, {0: "told", 1: "told"}) == (0, 1)
    # With the first accepted to the second's harm, and the other way round, none is.
    together = by_hand(easy)
    tight = [replace(easy[0], deadline_seconds=together[0] - 0.25), easy[1]]
    assert needless_rejects(SERVER, tight, {1: "told"}) == ()
    assert needless_rejects(SERVER, tight, {0: "told"}) == ()
    # Not even alone.
    assert needless_rejects(SERVER, [arrival(0, deadline=5.0)], {0: "told"}) == ()
    # The watched engine lets the second wait for the first.
    patient = [arrival(0, answer=6, deadline=10.2), arrival(1, seconds=2.0, answer=6, deadline=1000.0)]
    warm = [arrival(9 + index, seconds=-1000.0 + 20 * index, answer=6) for index in range(12)]
    shifted = [replace(one, seconds=one.seconds + 1000.0) for one in (*warm, *patient)]
    assert needless_rejects(SERVER, shifted, {1: "told"}) == ()
    assert needless_rejects(SERVER, shifted, {1: "told"}, watched=True) == (1,)


def test_needless_in_whole_harms_nobody_and_leaves_nobody_out() -> None:
    easy = [arrival(0, deadline=20.0), arrival(1, deadline=20.0)]
    assert needless_in_whole(SERVER, easy, {1: "told"}) == (1,)
    # Whoever is let in is late himself, or makes the other late.
    together = by_hand(easy)
    assert needless_in_whole(SERVER, [easy[0], arrival(1, deadline=together[1] - 0.25)], {1: "told"}) == ()
    assert needless_in_whole(SERVER, [arrival(0, deadline=together[0] - 0.25), easy[1]], {1: "told"}) == ()
    # A third that is rejected too still asks and computes: beside it there is no time.
    three = [arrival(index, deadline=by_hand([*easy, arrival(2)])[0] - 0.25) for index in range(2)]
    assert needless_in_whole(SERVER, [*three, arrival(2, deadline=20.0)], {1: "told", 2: "told"}) == ()
    assert needless_in_whole(SERVER, three, {1: "told"}) == (1,)


def test_let_in_is_never_held_back_or_given_up() -> None:
    shape = TraceShape(
        num_requests=60, requests_per_second=0.6, prompt_tokens=(4, 60), answer_tokens=(2, 20), max_tokens=40,
        slack=(2.0, 6.0), busy_seconds_per_token=2.0, prompt_seconds_per_token=0.25, seed=5,
    )  # fmt: skip
    trace = make_trace(shape)
    refused = [index for index, why in play(SERVER, trace).rejects.items() if why == "DeadlineError"]
    rescued = [index for index in refused if index not in play(SERVER, trace, let_in=index, first=True).rejects]
    assert len(rescued) > len(refused) / 2


def test_a_verdict_holds_together() -> None:
    shape = TraceShape(
        num_requests=60, requests_per_second=0.6, prompt_tokens=(4, 60), answer_tokens=(2, 20), max_tokens=40,
        slack=(2.0, 6.0), busy_seconds_per_token=2.0, prompt_seconds_per_token=0.25, seed=5,
    )  # fmt: skip
    trace = make_trace(shape)
    verdict = judge(SERVER, trace)
    run = play(SERVER, trace)
    assert verdict.rejects == run.rejects
    assert run.rejects.keys().isdisjoint(
        run.end_seconds.keys() - {i for i, why in run.rejects.items() if why == "late"}
    )
    assert run.rejects.keys() | run.end_seconds.keys() == set(range(60))
    for one in trace:
        if one.index not in run.rejects:
            assert run.end_seconds[one.index] <= one.seconds + one.deadline_seconds
    assert set(verdict.needless) <= verdict.rejects.keys()
    assert 10 < len(verdict.rejects) < 55


def test_traces_are_as_they_were_shaped() -> None:
    shape = TraceShape(
        num_requests=4000, requests_per_second=2.0, prompt_tokens=(16, 384), answer_tokens=(8, 192), max_tokens=256,
        slack=(2.0, 8.0), busy_seconds_per_token=0.05, prompt_seconds_per_token=0.004, seed=1,
    )  # fmt: skip
    trace = make_trace(shape)
    assert trace == make_trace(shape)
    assert trace != make_trace(replace(shape, seed=2))
    seconds = np.array([one.seconds for one in trace])
    assert np.all(np.diff(seconds) > 0)
    assert len(trace) / seconds[-1] == pytest.approx(2.0, rel=0.06)
    for values, (low, high) in (
        ([one.prompt_tokens for one in trace], (16, 384)),
        ([one.answer_tokens for one in trace], (8, 192)),
    ):
        assert min(values) == low
        assert max(values) == high
        assert np.median(values) == pytest.approx(np.sqrt(low * high), rel=0.1)
    slack = [one.deadline_seconds / (one.answer_tokens * 0.05 + one.prompt_tokens * 0.004) for one in trace]
    assert 2.0 <= min(slack) < 2.1 < 7.9 < max(slack) <= 8.0


def test_a_small_grid_stays_below_one_in_a_hundred() -> None:
    """The bar of `benchmarks/needless_rejects.py`, in small; a cold engine that started everybody had a third here."""
    from needless_rejects import measure

    rows = [measure(name, load, num_requests=100, num_seeds=1) for name in ("roomy", "tight") for load in (0.8, 4.0)]
    assert sum(row.num_rejects for row in rows) > 80
    assert sum(row.num_needless for row in rows) <= 0.01 * sum(row.num_requests for row in rows)
