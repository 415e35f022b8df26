"""Reports by hand: percentiles, goodput, and streams of events however they are cut."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.bench.endpoint import Endpoint, PromptSize, api_url, random_prompt
from openautoglm.bench.load import LoadRun
from openautoglm.bench.load_report import ServiceLevel, load_report_as_dict, load_report_table, make_report
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.server_sent import MAX_EVENT_BYTES, EventReader
from openautoglm.bench.traffic import Arrivals, Lengths, TrafficShape, draw_traffic, parse_lengths
from openautoglm.errors import ConfigError, LoadTestError
from openautoglm.spec.trace import TraceRequest
from openautoglm.units import parse_seconds

ENDPOINT = Endpoint(url="http://x/v1", model="m", api_key="secret")


def outcome(index: int, pieces: list[float], *, end: float, tokens: int | None = None, **fields: object) -> Outcome:
    deadline = fields.pop("deadline", None)
    request = TraceRequest(arrival_seconds=1.0, prompt_tokens=4, output_tokens=9, deadline_seconds=deadline)
    return Outcome(
        index=index, request=request, due_seconds=1.0, sent_seconds=1.0, end_seconds=end, piece_seconds=pieces,
        prompt_tokens=4, output_tokens=tokens, **fields,
    )  # fmt: skip


def run_of(outcomes: list[Outcome]) -> LoadRun:
    traffic = [one.request for one in outcomes]
    return LoadRun(endpoint=ENDPOINT, traffic=traffic, num_clients=None, outcomes=outcomes, seconds=10.0)


def test_goodput_counts_what_meets_every_limit() -> None:
    outcomes = [
        outcome(0, [1.5, 2.0, 2.5], end=2.5, tokens=5),  # first 0.5, per token 0.25, whole 1.5
        outcome(1, [1.9, 2.0], end=2.1, tokens=2),  # first 0.9, per token 0.1
        outcome(2, [1.1, 4.0], end=4.0, tokens=3),  # per token 1.45, whole 3
        outcome(3, [1.1], end=11.0, tokens=1, deadline=5.0),
        outcome(4, [1.1], end=1.2, tokens=1, error="cut_off", message="why"),
    ]
    run = run_of(outcomes)
    goods = {
        ServiceLevel(): 3,
        ServiceLevel(first_token_seconds=0.6): 2,
        ServiceLevel(token_gap_seconds=0.2): 1,
        ServiceLevel(whole_seconds=1.5): 2,
        ServiceLevel(first_token_seconds=0.6, token_gap_seconds=0.3, whole_seconds=2.0): 1,
    }
    for level, good in goods.items():
        report = make_report(run, level)
        assert (report.num_sent, report.num_answered, report.num_good) == (5, 4, good)
        assert report.seconds == 10.0
        assert report.goodput == pytest.approx(good / 10)
        assert report.good_share == pytest.approx(good / 5)
    report = make_report(run, ServiceLevel())
    assert report.tokens_per_second == pytest.approx((5 + 2 + 3 + 1) / 10)
    assert report.good_output_tokens == 10
    assert report.first_token.mean == pytest.approx((0.5 + 0.9 + 0.1 + 0.1) / 4)
    assert report.gap.most == pytest.approx(2.9)
    assert report.token_gap.most == pytest.approx(1.45)
    table = load_report_table(report)
    assert "cut_off: why" in table
    document = load_report_as_dict(report, run.outcomes)
    assert "secret" not in json.dumps(document) + table + repr(ENDPOINT)
    assert [one["good"] for one in document["outcomes"]] == [True, True, True, False, False]
    assert document["errors"] == [{"type": "cut_off", "count": 1, "message": "why"}]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=200))
def test_percentiles_are_those_of_the_sorted_list(seconds: list[float]) -> None:
    report = make_report(
        run_of([outcome(k, [1 + s], end=1 + s, tokens=1) for k, s in enumerate(seconds)]), ServiceLevel()
    )
    ranked = sorted(seconds)
    for percent, value in report.whole.percentiles.items():
        place = (len(ranked) - 1) * percent / 100
        assert ranked[math.floor(place)] - 1e-9 <= value <= ranked[math.ceil(place)] + 1e-9


def test_a_report_of_nothing() -> None:
    report = make_report(LoadRun(endpoint=ENDPOINT, traffic=(), num_clients=2), ServiceLevel())
    assert (report.num_sent, report.goodput, report.first_token) == (0, 0.0, None)
    assert load_report_table(report)
    assert json.dumps(load_report_as_dict(report))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), min_size=1), max_size=6),
    st.lists(st.integers(1, 20), max_size=60),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_the_same_however_the_stream_is_cut(texts: list[str], cuts: list[int], newline: bytes) -> None:
    stream = b": comment" + newline + newline
    stream += b"".join(b"event: x" + newline + b"data: " + text.encode() + newline * 2 for text in texts)
    reader, found = EventReader(), []
    for size in cuts:
        found += list(reader.push(stream[:size]))
        stream = stream[size:]
    found += list(reader.push(stream))
    assert [data.decode() for data in found] == texts


def test_an_event_without_an_end_is_refused() -> None:
    reader = EventReader()
    assert list(reader.push(b"x" * MAX_EVENT_BYTES)) == []
    with pytest.raises(LoadTestError, match="event"):
        list(reader.push(b"x"))


def shape(**fields: object) -> TrafficShape:
    given = {
        "num_requests": 4000, "requests_per_second": 5.0, "arrivals": Arrivals.POISSON,
        "prompt_tokens": Lengths(low=16, high=384), "output_tokens": Lengths(low=8, high=192, logarithmic=True),
        "deadline_seconds": 3.0, "seed": 1,
    }  # fmt: skip
    return TrafficShape(**(given | fields))


def test_traffic_is_as_it_was_shaped() -> None:
    traffic = draw_traffic(shape())
    assert traffic == draw_traffic(shape())
    assert traffic != draw_traffic(shape(seed=2))
    gaps = np.diff([one.arrival_seconds for one in traffic])
    assert traffic[0].arrival_seconds == 0.0
    # Exponential: mean and deviation are the same, and exp(-1) of the gaps are longer than the mean.
    assert gaps.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps.std() == pytest.approx(0.2, rel=0.08)
    assert (gaps > 0.2).mean() == pytest.approx(math.exp(-1), abs=0.03)
    prompts = np.array([one.prompt_tokens for one in traffic])
    outputs = np.array([one.output_tokens for one in traffic])
    assert (prompts.min(), prompts.max()) == (16, 384)
    assert (outputs.min(), outputs.max()) == (8, 192)
    assert np.median(prompts) == pytest.approx(200, rel=0.06)
    assert np.median(outputs) == pytest.approx(math.sqrt(8 * 192), rel=0.1)
    fixed = draw_traffic(shape(arrivals=Arrivals.FIXED, num_requests=11))
    assert [one.arrival_seconds for one in fixed] == pytest.approx([0.2 * k for k in range(11)])
    closed = draw_traffic(shape(requests_per_second=None, num_requests=3))
    assert {one.arrival_seconds for one in closed} == {0.0}


def test_lengths_and_times_as_people_write_them() -> None:
    assert parse_lengths("128") == Lengths(low=128, high=128)
    assert parse_lengths("16-384") == Lengths(low=16, high=384)
    assert parse_lengths("log:16-384") == Lengths(low=16, high=384, logarithmic=True)
    for wrong in ("", "0", "-3", "9-3", "log:", "normal:3-4", "1.5", "16-", "1-999999999"):
        with pytest.raises(ConfigError, match="number of tokens"):
            parse_lengths(wrong)
    for text, seconds in {"250ms": 0.25, "2 s": 2.0, "1.5": 1.5, "2min": 120.0, "1h": 3600.0}.items():
        assert parse_seconds(text) == pytest.approx(seconds)
    for wrong in ("", "0s", "-1s", "3days", "ms", "nan", "1e3"):
        with pytest.raises(ConfigError, match="is no time"):
            parse_seconds(wrong)


def test_addresses() -> None:
    assert api_url("http://127.0.0.1:8000") == api_url(" http://127.0.0.1:8000/v1/ ") == "http://127.0.0.1:8000/v1"
    assert api_url("https://host/prefix") == "https://host/prefix/v1"
    for wrong in (
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host/?q=1",
        "http://u:p@host",
    ):
        with pytest.raises(ConfigError):
            api_url(wrong)


def test_prompts_share_no_beginning_and_have_the_words_that_were_asked_for() -> None:
    prompts = [random_prompt(40, seed=seed) for seed in range(50)]
    assert len({prompt[:30] for prompt in prompts}) == 50
    assert all(len(prompt.split()) == 40 for prompt in prompts)
    assert PromptSize(base_tokens=10, tokens_per_word=2.0).words(30) == 10
    assert PromptSize(base_tokens=10, tokens_per_word=2.0).words(3) == 1
