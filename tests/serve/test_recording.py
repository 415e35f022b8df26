"""Recorded traffic: a trace that simulations read, without a word of what was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.engine.client import GenerationEvent, GenerationRequest
from openautoglm.errors import ConfigError
from openautoglm.serve.recording import TrafficRecorder
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.trace import TraceRequest, parse_trace


def test_what_was_answered_is_in_the_trace_and_nothing_else(tmp_path: Path) -> None:
    now = 10.0
    recorder = TrafficRecorder(tmp_path / "t.jsonl", clock=lambda: now)
    requests = []
    for index, (seconds, most) in enumerate(((10.5, 50), (11.25, None))):
        now = seconds
        request = GenerationRequest(
            request_id=f"secret-{index}",
            prompt_tokens=(7, 8, 9),
            sampling=SamplingParams(max_tokens=most, n=2),
            priority=index,
            deadline_seconds=4.0 if index else None,
        )
        requests.append(recorder.begin(request))

    def end(index: int, reason: str | None, tokens: int) -> None:
        event = GenerationEvent(
            request_id="x", choice=0, text="secret", tokens=(1,), finish_reason=reason, completion_tokens=tokens
        )
        recorder.event(requests[index], event)

    end(1, "stop", 6)
    end(0, None, 1)
    end(0, "length", 50)
    end(0, "abort", 3)
    end(1, "error", 2)
    recorder.close()
    end(0, "stop", 9)
    text = (tmp_path / "t.jsonl").read_text()
    assert parse_trace(text.splitlines(), source="t") == (
        TraceRequest(arrival_seconds=0.5, prompt_tokens=3, output_tokens=50, max_tokens=50),
        TraceRequest(arrival_seconds=1.25, prompt_tokens=3, output_tokens=6, deadline_seconds=4.0, priority=1),
    )
    assert "secret" not in text
    assert (tmp_path / "t.jsonl").stat().st_mode & 0o077 == 0


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("mine")
    for wrong in (tmp_path / "t", tmp_path / "no" / "t"):
        with pytest.raises(ConfigError, match="name a file to be made"):
            TrafficRecorder(wrong)
    assert (tmp_path / "t").read_text() == "mine"
