"""What requests take in the HTTP process is bounded: bodies wait, answers and slow readers end, each with a type."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.engine.client import GenerationEvent, TokenLogprob
from openautoglm.engine.streams import MAX_UNREAD_BYTES, Backlog, EventStream
from openautoglm.errors import EngineError, OverloadedError
from openautoglm.memory.requests import ANSWER_COPIES, BODY_COPIES, RequestSpace
from openautoglm.serve.intake import Intake
from openautoglm.units import KIB, MIB
from tests.serve.live import Live, live_server

SPACE = RequestSpace(engine_bytes=MIB, body_bytes=120 * BODY_COPIES, answer_bytes=300 * KIB, event_bytes=MIB)


def test_bodies_wait_for_room_in_the_order_in_which_they_came():
    async def work() -> list[int]:
        intake = Intake(SPACE, wait_seconds=5)
        order: list[int] = []

        async def one(index: int, num_bytes: int) -> None:
            async with intake.body(num_bytes):
                order.append(index)
                assert intake.bodies.in_use_bytes <= 120 * BODY_COPIES
                await asyncio.sleep(0.01)

        # The second is large: the small ones behind it must not go before it for ever.
        await asyncio.gather(*(one(index, size) for index, size in enumerate([100, 120, 10, 10, 10])))
        assert intake.bodies.in_use_bytes == 0
        return order

    assert asyncio.run(work()) == [0, 1, 2, 3, 4]


def test_a_body_without_room_in_time_is_refused_and_harms_nobody():
    async def work() -> None:
        intake = Intake(SPACE, wait_seconds=0.05)
        async with intake.body(100):
            with pytest.raises(OverloadedError, match="no room"):
                async with intake.body(100):
                    raise AssertionError("there was no room")
        async with intake.body(120) as charge:
            charge.release()
            charge.release()
            async with intake.body(120):
                assert intake.bodies.in_use_bytes == 120 * BODY_COPIES
        assert intake.bodies.in_use_bytes == 0

    asyncio.run(work())


def test_answers_end_where_their_share_is_full():
    intake = Intake(SPACE)
    first, second = intake.answer(), intake.answer()
    first.add(50 * KIB)
    assert intake.answers.in_use_bytes >= 50 * KIB * ANSWER_COPIES
    with pytest.raises(OverloadedError, match="stream this one"):
        second.add(60 * KIB)
    first.release()
    third = intake.answer()
    third.add(60 * KIB)
    third.release()
    second.release()
    assert intake.answers.in_use_bytes == 0


def test_the_slowest_readers_end_and_the_others_keep_their_events():
    def event(stop: bool = False) -> GenerationEvent:
        logprobs = (TokenLogprob(token=1, logprob=0.0, top=((1, 0.0),) * 30),)
        reason = "stop" if stop else None
        return GenerationEvent(request_id="r", choice=0, text="x", logprobs=logprobs, finish_reason=reason)

    async def work() -> None:
        backlog = Backlog(100_000)
        slow, quick = EventStream(1, backlog), EventStream(1, backlog)
        for _ in range(20):
            slow.put(event())
        quick.put(event(stop=True))
        assert backlog.cut_slowest() == []
        for _ in range(10):
            slow.put(event())
        assert backlog.cut_slowest() == [slow]
        assert backlog.num_bytes == quick.num_bytes
        slow.put(event())
        assert slow.num_bytes == 0
        with pytest.raises(OverloadedError, match="not read as fast"):
            await anext(aiter(slow.events()))
        assert [news.finish_reason async for news in quick.events()] == ["stop"]
        assert backlog.num_bytes == 0
        quick.fail(EngineError("gone"))
        quick.close()

    asyncio.run(work())


def test_a_reader_that_takes_nothing_holds_little_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openautoglm.engine.streams.PATIENCE_SECONDS", 0.0)

    async def work() -> None:
        backlog = Backlog(1 << 40)
        slow, quick = EventStream(2, backlog), EventStream(1, backlog)
        quick.put(GenerationEvent(request_id="q", choice=0, text="x", tokens=(1,)))
        num_tokens = 0
        while not backlog.cut_slowest():
            slow.put(GenerationEvent(request_id="s", choice=num_tokens % 2, text=" word", tokens=(1000,)))
            num_tokens += 1
            assert slow.num_bytes < MAX_UNREAD_BYTES + 2 * KIB
        # Joined, so that a reader may be hundreds of tokens behind, not the fifty that single events would be.
        assert 300 < num_tokens < 1000
        with pytest.raises(OverloadedError, match="not read as fast"):
            await anext(aiter(slow.events()))
        assert (await anext(aiter(quick.events()))).text == "x"
        assert backlog.num_bytes == 0

    asyncio.run(work())


def test_a_reader_that_is_only_slow_goes_on():
    async def work() -> None:
        backlog = Backlog(1 << 40)
        stream = EventStream(1, backlog)
        news = aiter(stream.events())
        for number in range(5000):
            stream.put(GenerationEvent(request_id="s", choice=0, text=" word", tokens=(number,)))
            assert not backlog.cut_slowest()
            if number % 1000 == 0:
                await anext(news)
        assert backlog.num_bytes > 4 * MAX_UNREAD_BYTES

    asyncio.run(work())


@given(
    events=st.lists(st.tuples(st.integers(0, 2), st.text(max_size=40), st.booleans()), max_size=60),
    reads=st.lists(st.booleans(), min_size=60, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_joined_events_say_the_same(events: list[tuple[int, str, bool]], reads: list[bool]):
    """Whenever a reader comes, each choice gets its text, tokens and logprobs in order, and every end."""

    async def work() -> None:
        backlog = Backlog(1 << 40)
        stream = EventStream(3, backlog)
        news = aiter(stream.events())
        expected: dict[int, list[object]] = {choice: ["", [], [], 0] for choice in range(3)}
        found: dict[int, list[object]] = {choice: ["", [], [], 0] for choice in range(3)}

        def note(where: dict[int, list[object]], event: GenerationEvent) -> None:
            one = where[event.choice]
            one[0] += event.text
            one[1] += event.tokens
            one[2] += [(item.token, len(item.top)) for item in event.logprobs]
            one[3] = event.completion_tokens
            assert event.prompt_tokens == 7

        async def read() -> None:
            note(found, await anext(news))

        for number, ((choice, text, with_logprobs), reading) in enumerate(zip(events, reads, strict=False)):
            logprobs = (TokenLogprob(token=number, logprob=0.0, top=((1, 0.0),) * 4),) if with_logprobs else ()
            event = GenerationEvent(
                request_id="r", choice=choice, text=text, tokens=(number,), logprobs=logprobs,
                prompt_tokens=7, completion_tokens=number,
            )  # fmt: skip
            note(expected, event)
            stream.put(event)
            if reading:
                await read()
        for choice in range(3):
            last = GenerationEvent(
                request_id="r", choice=choice, finish_reason="stop", prompt_tokens=7, completion_tokens=99
            )
            note(expected, last)
            stream.put(last)
        async for event in news:
            note(found, event)
        assert stream.finished
        assert found == expected
        stream.close()
        assert backlog.num_bytes == 0

    asyncio.run(work())


def test_a_whole_answer_too_large_for_its_share_is_a_429(tokenizer, monkeypatch: pytest.MonkeyPatch):
    with live_server(tokenizer, context_tokens=4096) as live:
        monkeypatch.setattr(live.context.intake, "answers", Intake(SPACE).answers)
        body = {"prompt": [66] * 400, "max_tokens": 500, "n": 8, "logprobs": 5}
        refused = live.post("/v1/completions", body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "overloaded"
        assert live.context.intake.answers.in_use_bytes == 0
        assert live.post("/v1/completions", {**body, "n": 1, "logprobs": None}).status_code == 200
        streamed = live.post("/v1/completions", {**body, "stream": True})
        assert streamed.text.rstrip().endswith("data: [DONE]")
        live.wait_until_idle()
        assert live.context.intake.answers.in_use_bytes == 0
        assert live.context.intake.bodies.in_use_bytes == 0


def test_nothing_stays_charged_whatever_becomes_of_requests(server: Live):
    fields = ({}, {"stream": True}, {"temperature": -1}, {"n": 99}, {"truncate": "head"}, {"logprobs": True, "n": 3})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda index: server.chat("hello", **fields[index % len(fields)]), range(48)))
    server.wait_until_idle()
    assert server.context.intake.bodies.in_use_bytes == 0
    assert server.context.intake.answers.in_use_bytes == 0


def test_a_body_is_held_no_longer_than_until_the_engine_has_it(server: Live, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server.engine, "seconds_per_token", 0.05)
    asking = threading.Thread(target=lambda: server.chat("hello " * 20, max_tokens=40))
    asking.start()
    deadline = time.monotonic() + 5
    while not server.engine.running and time.monotonic() < deadline:
        time.sleep(0.002)
    assert server.engine.running
    assert server.context.intake.bodies.in_use_bytes == 0
    asking.join()


def test_more_requests_than_the_limit_are_refused_with_a_type(tokenizer):
    with live_server(tokenizer, max_requests=2) as live:
        live.engine.seconds_before_first = 0.5
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: live.chat("hi"), range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["type"] == "overloaded_error"
        assert refused.headers["retry-after"] == "1"
        live.engine.seconds_before_first = 0.0
        live.still_answers()


def test_a_client_that_takes_nothing_is_let_go(tokenizer):
    with live_server(tokenizer, client_seconds=0.3, context_tokens=1 << 20) as live, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", live.port))
        body = json.dumps({"prompt": [66] * 500, "n": 16, "max_tokens": 500, "stream": True, "logprobs": 5}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        deadline = time.monotonic() + 10
        while not live.engine.aborted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        live.wait_until_idle()
