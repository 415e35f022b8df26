"""The load test's clients, against a server of which every byte and pause is known."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise

import pytest

from openautoglm.bench.endpoint import Api, Endpoint, PromptSize
from openautoglm.bench.load import LoadRun, run_load
from openautoglm.bench.load_report import ServiceLevel, make_report
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.patience import Patience
from openautoglm.spec.trace import TraceRequest
from tests.bench.stub_server import DONE, STREAM_HEAD, Answer, StubServer, event, piece, plain, stub_server, usage


def request(seconds: float = 0.0, *, prompt: int = 5, output: int = 3, deadline: float | None = None) -> TraceRequest:
    return TraceRequest(
        arrival_seconds=seconds, prompt_tokens=prompt, output_tokens=output, deadline_seconds=deadline, priority=0
    )


def load(
    answer: Answer, traffic: list[TraceRequest], *, clients: int | None = None, timeout: float = 5.0, **fields: object
) -> tuple[list[Outcome], StubServer, LoadRun]:
    async def main() -> tuple[list[Outcome], StubServer, LoadRun]:
        async with stub_server(answer) as stub:
            endpoint = Endpoint(url=stub.url, model="m", **fields)
            run = LoadRun(endpoint=endpoint, traffic=traffic, num_clients=clients)
            await run_load(run, Patience(connect_seconds=1.0, answer_seconds=timeout))
            return sorted(run.outcomes, key=lambda one: one.index), stub, run

    return asyncio.run(main())


async def answer_well(_body: object, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + piece("a"))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.write(piece("b") + usage(7, 4) + DONE)


def test_a_request_is_what_it_should_be_and_its_times_are_taken() -> None:
    (outcome,), stub, _ = load(answer_well, [request(prompt=5, output=3)], extra=(("top_k", 4),))
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens, len(outcome.piece_seconds)) == (7, 4, 2)
    (gap,) = outcome.gap_seconds
    assert 0.045 < gap < 0.5
    assert outcome.token_gap_seconds == pytest.approx(gap / 3)
    assert 0 < outcome.first_token_seconds < outcome.whole_seconds - 0.045
    (body,) = stub.bodies
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"], body["top_k"]) == (
        "m",
        3,
        True,
        True,
        4,
    )
    assert len(str(body["prompt"]).split()) == 5
    assert "deadline_seconds" not in body


def test_a_chat_is_counted_by_its_deltas_and_deadlines_are_sent() -> None:
    async def answer(_body: object, writer: asyncio.StreamWriter) -> None:
        for delta in ({"role": "assistant", "content": ""}, {"content": "a"}, {"reasoning_content": "b"}, {}):
            writer.write((STREAM_HEAD if "role" in delta else b"") + event({"choices": [{"index": 0, "delta": delta}]}))
        writer.write(DONE)

    size = PromptSize(base_tokens=10, tokens_per_word=2.0)
    traffic = [request(prompt=30, deadline=9.0)]
    (outcome,), stub, _ = load(answer, traffic, api=Api.CHAT, size=size, send_deadline=True, ignore_eos=False)
    assert (outcome.error, len(outcome.piece_seconds), outcome.num_output_tokens) == (None, 2, 2)
    assert stub.bodies[0]["deadline_seconds"] == 9.0
    assert "ignore_eos" not in stub.bodies[0]
    assert len(stub.bodies[0]["messages"][0]["content"].split()) == 10


def test_a_stall_meets_everything_that_is_due_meanwhile() -> None:
    """Coordinated omission: a client that waited for the first answer would send the others late and see them quick."""
    stalled = asyncio.Event()

    async def answer(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if body["max_tokens"] == 99:
            await asyncio.sleep(0.4)
            stalled.set()
        await stalled.wait()
        writer.write(STREAM_HEAD + piece("a") + DONE)

    outcomes, _, _ = load(answer, [request(output=99), *(request(0.05 * k) for k in range(1, 6))])
    for number, outcome in enumerate(outcomes):
        assert outcome.due_seconds == pytest.approx(0.05 * number)
        assert outcome.first_token_seconds == pytest.approx(0.4 - 0.05 * number, abs=0.2)
        assert outcome.first_token_seconds > 0.39 - 0.05 * number


def test_a_late_client_makes_its_requests_longer_not_the_server_faster() -> None:
    async def answer(_body: object, writer: asyncio.StreamWriter) -> None:
        time.sleep(0.2)  # holds up the client's loop too, as they share it
        writer.write(STREAM_HEAD + piece("a") + DONE)

    outcomes, _, run = load(answer, [request(), request(0.05), request(0.1)])
    assert outcomes[1].sent_seconds - outcomes[1].due_seconds > 0.1
    assert outcomes[1].first_token_seconds > 0.2
    report = make_report(run, ServiceLevel())
    assert any("ms late" in warning for warning in report.warnings)


def test_clients_of_a_closed_loop_ask_one_after_the_other_and_wait_when_they_are_told_to() -> None:
    at_once = most = count = 0

    async def answer(_body: object, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most, count
        at_once, count = at_once + 1, count + 1
        most = max(most, at_once)
        first = count == 1
        await asyncio.sleep(0.02)
        if first:
            writer.write(plain(429, b'{"error": {"type": "overloaded_error", "message": "full"}}', "retry-after: 1"))
        else:
            writer.write(STREAM_HEAD + piece("a") + DONE)
        at_once -= 1

    started = time.perf_counter()
    outcomes, _, _ = load(answer, [request() for _ in range(6)], clients=2)
    assert most == 2
    assert [one.error for one in outcomes].count("http_429_overloaded_error") == 1
    assert outcomes[0].retry_after_seconds == 1.0
    # One client waited for its second: the other did all the rest meanwhile.
    assert time.perf_counter() - started > 1.0
    alone, _, _ = load(answer, [request() for _ in range(3)], clients=1)
    assert all(later.sent_seconds >= earlier.end_seconds for earlier, later in pairwise(alone))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (plain(503, b"<html>"), "http_503", "<html>"),
        (plain(400, json.dumps({"error": {"code": "too long", "message": "m"}}).encode()), "http_400_too_long", "m"),
        (plain(500, b'{"error": "plain"}'), "http_500_error", "plain"),
        (plain(200, b"{}", "content-type: application/json"), "bad_answer", "application/json"),
        (STREAM_HEAD + piece("a"), "cut_off", "[DONE]"),
        (STREAM_HEAD + event({"error": {"type": "server_error", "message": "gone"}}), "stream_server_error", "gone"),
        (STREAM_HEAD + event(b"{"), "bad_answer", "no JSON"),
        (STREAM_HEAD + event([1]), "bad_answer", "no JSON object"),
        (STREAM_HEAD + event({"choices": [3]}), "bad_answer", "shape"),
        (STREAM_HEAD + event({"usage": {"prompt_tokens": "x"}}), "bad_answer", "shape"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "bad_answer", "no type"),
        (b"not HTTP at all\r\n\r\n", "cut_off", ""),
        (b"", "cut_off", ""),
    ],
)
def test_whatever_goes_wrong_has_a_name(answer: bytes, error: str, words: str) -> None:
    async def write(_body: object, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    (outcome,), _, run = load(write, [request()])
    assert outcome.error == error
    assert words in outcome.message
    report = make_report(run, ServiceLevel())
    assert (report.num_answered, report.num_good, report.errors) == (0, 0, {error: 1})


def test_an_answer_that_takes_too_long_is_a_timeout_and_nobody_there_is_another() -> None:
    async def never(_body: object, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + piece("a"))
        await writer.drain()
        await asyncio.sleep(2)

    (outcome,), stub, _ = load(never, [request()], timeout=0.2)
    assert (outcome.error, len(outcome.piece_seconds)) == ("timeout", 1)
    assert 0.2 <= outcome.whole_seconds < 1.5
    gone = LoadRun(endpoint=Endpoint(url=stub.url, model="m"), traffic=[request()], num_clients=None)
    asyncio.run(run_load(gone, Patience()))
    assert gone.outcomes[0].error == "connect"


def test_what_has_come_stays_when_the_run_is_cut_short() -> None:
    async def main() -> LoadRun:
        async with stub_server(answer_well) as stub:
            run = LoadRun(
                endpoint=Endpoint(url=stub.url, model="m"), traffic=[request(), request(60.0)], num_clients=None
            )
            task = asyncio.create_task(run_load(run, Patience()))
            while not run.outcomes:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return run

    report = make_report(asyncio.run(main()), ServiceLevel())
    assert (report.complete, report.num_sent, report.num_answered) == (False, 1, 1)
    assert "interrupted: 1 of 2" in report.warnings[0]
