"""`bench serve` as a user runs it: against this package's own edge, and against what is no such server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from openautoglm.cli.main import cli
from openautoglm.errors import OpenAutoGLMError
from openautoglm.serve.access import AccessOptions
from openautoglm.spec.trace import TraceRequest, format_trace
from tests.serve.live import Live, live_server, make_tokenizer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(make_tokenizer(tmp_path_factory.mktemp("tokenizer"))) as live:
        yield live


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "serve", *arguments])


def test_a_closed_loop_reports_what_the_engine_saw(server: Live, tmp_path: Path) -> None:
    server.engine.requests.clear()
    file = tmp_path / "report.json"
    arguments = ("--clients", "3", "--requests", "9", "--prompt-tokens", "20-60", "--output-tokens", "5")
    done = bench("--url", server.url, *arguments, "--json", "--output", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    asked = server.engine.requests[2:]  # two measured the prompts
    assert len(asked) == 9
    assert all(one.sampling.max_tokens == 5 and one.sampling.ignore_eos for one in asked)
    assert report["requests"] == {"planned": 9, "ended": 9, "answered": 9}
    assert report["model"] == "small"
    written = json.loads(file.read_text())
    outcomes = written.pop("outcomes")
    assert written == report
    assert sorted(one["prompt_tokens"] for one in outcomes) == sorted(len(one.prompt_tokens) for one in asked)
    assert {one["output_tokens"] for one in outcomes} == {5}
    # Prompts are about as long as they were to be: what they are made of was measured.
    assert all(10 <= one["prompt_tokens"] <= 80 for one in outcomes)


def test_a_trace_is_sent_at_its_times(server: Live, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    requests = [
        TraceRequest(arrival_seconds=0.1 * k, prompt_tokens=9, output_tokens=3 + k, deadline_seconds=30.0, priority=k)
        for k in range(3)
    ]
    trace.write_text(format_trace(requests))
    server.engine.requests.clear()
    done = bench("--url", server.url + "/v1", "--trace", str(trace), "--send-deadlines", "--api", "chat")
    assert done.exit_code == 0, done.output
    asked = server.engine.requests[2:]
    assert [one.sampling.max_tokens for one in asked] == [3, 4, 5]
    assert [one.priority for one in asked] == [0, 1, 2]
    assert all(29 < (one.deadline_seconds or 0) < 30 for one in asked)
    assert "3 answered, 0 failed" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of --rate, --clients and --trace"),
        (("--rate", "1", "--clients", "1"), "one of --rate, --clients and --trace"),
        (("--rate", "0"), "--rate"),
        (("--clients", "1", "--model", "other"), "has no model 'other': it has small"),
        (("--clients", "1", "--url", "http://127.0.0.1:1"), "is a server running there?"),
        (("--clients", "1", "--url", "nowhere"), "no address of a server"),
        (("--clients", "1", "--slo-ttft", "soon"), "is no time"),
        (("--clients", "1", "--prompt-tokens", "many"), "number of tokens"),
        (("--clients", "1", "--extra-body", "{"), "no JSON"),
        (("--clients", "1", "--extra-body", '{"temperature": -1}'), "temperature"),
        (("--clients", "1", "--trace", "/nonexistent"), "/nonexistent"),
    ],
)
def test_wrong_use_says_what_was_wrong(server: Live, arguments: tuple[str, ...], words: str) -> None:
    done = bench("--url", server.url, *arguments)
    assert done.exit_code != 0
    said = done.output + (str(done.exception) if isinstance(done.exception, OpenAutoGLMError) else "")
    assert words in said


def test_refusals_are_told_by_type_and_nothing_answered_is_a_failure(server: Live) -> None:
    done = bench("--url", server.url, "--clients", "1", "--requests", "2", "--output-tokens", "4000")
    assert done.exit_code == 1
    assert "2  http_400_context_length_exceeded" in done.output


def test_a_key_is_asked_for_and_not_shown(tmp_path: Path) -> None:
    with live_server(make_tokenizer(tmp_path), access=AccessOptions(api_key="k" * 24)) as live:
        without = bench("--url", live.url, "--clients", "1", "--requests", "1")
        assert "--api-key" in str(without.exception)
        done = bench("--url", live.url, "--clients", "1", "--requests", "1", "--api-key", "k" * 24, "--json")
    assert done.exit_code == 0, done.output
    assert "k" * 24 not in done.output
