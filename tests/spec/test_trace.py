"""Trace files: what is read, in which order, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import ConfigError
from openautoglm.spec.trace import TraceRequest, format_trace, parse_trace

LINE = {"arrival_seconds": 1.5, "prompt_tokens": 7, "output_tokens": 3}
REQUESTS = st.builds(
    TraceRequest,
    arrival_seconds=st.floats(0, 1e6),
    prompt_tokens=st.integers(1, 1 << 20),
    output_tokens=st.integers(1, 100),
    max_tokens=st.none() | st.integers(100, 1000),
    deadline_seconds=st.none() | st.floats(1e-3, 1e4),
    priority=st.integers(-1000, 1000),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=8))
def test_what_is_written_is_read_again_in_the_order_of_arrival(requests: list[TraceRequest]) -> None:
    text = format_trace(requests)
    assert [json.loads(line)["prompt_tokens"] for line in text.splitlines()] == [one.prompt_tokens for one in requests]
    assert parse_trace(text.splitlines(), source="x") == tuple(sorted(requests, key=lambda one: one.arrival_seconds))


def test_comments_and_defaults() -> None:
    (only,) = parse_trace(["# a comment", "", json.dumps(LINE)], source="x")
    assert (only.limit_tokens, only.deadline_seconds, only.priority) == (3, None, 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        (json.dumps({**LINE, "speed": 3}), "speed"),
        (json.dumps({"arrival_seconds": 1.5, "prompt_tokens": 7}), "output_tokens"),
        (json.dumps({**LINE, "prompt_tokens": 0}), "prompt_tokens"),
        (json.dumps({**LINE, "prompt_tokens": "7"}), "prompt_tokens"),
        (json.dumps({**LINE, "arrival_seconds": -1}), "arrival_seconds"),
        (json.dumps({**LINE, "arrival_seconds": float("nan")}), "line 2"),
        (json.dumps({**LINE, "deadline_seconds": 0}), "deadline_seconds"),
        (json.dumps({**LINE, "max_tokens": 2}), "above max_tokens"),
    ],
)
def test_what_is_no_request_is_refused_with_its_line(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_trace([json.dumps(LINE), line], source="trace.jsonl")


def test_a_trace_without_requests_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no request"):
        parse_trace(["# nothing"], source="trace.jsonl")
