"""Streams in time: pings, failures in the middle, clients that leave, slow readers, a server that stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from openautoglm.errors import EngineError
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, events_of, live_server
from tests.serve.small_engine import overloaded


def open_stream(server: Live, path: str = "/v1/chat/completions", **fields: object) -> socket.socket:
    """Send a request by hand, so that the connection can be cut when the test wants."""
    content = {"messages": [{"role": "user", "content": "hello " * 20}]} if "chat" in path else {}
    body = json.dumps({**content, **fields}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def wait_until_running(server: Live) -> None:
    deadline = time.monotonic() + 5
    while not server.engine.running:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["before the first token", "among the tokens"])
def test_a_client_that_leaves_ends_its_request(
    server: Live, monkeypatch: pytest.MonkeyPatch, stream: bool, stage: str
) -> None:
    slow = "seconds_before_first" if stage == "before the first token" else "seconds_per_token"
    monkeypatch.setattr(server.engine, slow, 30.0 if slow == "seconds_before_first" else 0.05)
    connection = open_stream(server, stream=stream, n=2)
    wait_until_running(server)
    if stage == "among the tokens":
        time.sleep(0.3)
    connection.close()
    assert server.wait_until_idle() < 0.5
    assert len(server.engine.aborted) == 1
    monkeypatch.setattr(server.engine, slow, 0.0)
    server.still_answers()


def test_a_client_that_leaves_ends_all_its_prompts(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "seconds_before_first", 30.0)
    connection = open_stream(server, "/v1/completions", prompt=["a", "b", "c"])
    deadline = time.monotonic() + 5
    while len(server.engine.running) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    connection.close()
    assert server.wait_until_idle() < 0.5
    assert len(server.engine.aborted) == 3


def test_a_silent_stream_is_kept_alive_by_comments(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, ping_seconds=0.1) as server:
        server.engine.seconds_before_first = 0.55
        text = server.chat(stream=True).text
        assert 3 <= text.count(": ping\n\n") <= 6
        assert text.index(": ping") < text.index('"content":"0"')
        assert events_of(text)[-1] == "[DONE]"
        stream = server.client().chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "0:hello"


def test_a_failure_in_the_middle_is_an_error_event_and_no_done(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "fail_after_tokens", 3)
    response = server.chat(stream=True)
    assert response.status_code == 200
    data = events_of(response.text)
    assert "[DONE]" not in data
    error = json.loads(data[-1])["error"]
    assert error == {
        "message": "out of memory: pool",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }
    with pytest.raises(openai.APIError, match="out of memory: pool"):
        list(
            server.client().chat.completions.create(
                model="small", messages=[{"role": "user", "content": "hello"}], stream=True
            )
        )
    whole = server.chat()
    assert whole.status_code == 503
    assert whole.json()["error"]["message"] == "out of memory: pool"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_its_status(server: Live, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(server.engine, "refuse", overloaded())
    response = server.chat(stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["code"] == "overloaded"
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(
            model="small", messages=[{"role": "user", "content": "x"}], stream=stream
        )
    monkeypatch.setattr(server.engine, "refuse", EngineError("no answer at /tmp/secret/engine.sock"))
    response = server.chat(stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (503, "server_error", "engine_unavailable")
    assert response.headers["retry-after"]
    assert "/tmp" not in error["message"]


def test_a_slow_reader_holds_little_and_slows_nobody(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "context_tokens", 1 << 20)
    with socket.socket() as connection:
        read_nothing(server, connection)
    server.wait_until_idle()


def read_nothing(server: Live, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    body = json.dumps({"prompt": [66] * 500, "n": 16, "max_tokens": 500, "stream": True, "logprobs": 5}).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    wait_until_running(server)
    before = -1
    while before != server.engine.generated_tokens:
        before = server.engine.generated_tokens
        time.sleep(0.3)
    num_tokens = len(server.engine.requests[0].prompt_tokens) * 16
    assert server.engine.generated_tokens < num_tokens // 4
    # It stopped although nobody has read anything: what was written waits in bounded buffers.
    assert server.engine.running
    begin = time.monotonic()
    server.still_answers()
    assert time.monotonic() - begin < 2


@pytest.fixture
def own_server(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer) as live:
        yield live


def test_draining_refuses_new_requests_and_finishes_old_ones(own_server: Live) -> None:
    own_server.engine.seconds_per_token = 0.05
    answers: list[httpx.Response] = []
    running = threading.Thread(target=lambda: answers.append(own_server.chat(stream=True)))
    running.start()
    wait_until_running(own_server)
    own_server.context.drain.begin()
    refused = own_server.chat()
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "draining"
    health = own_server.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    running.join(10)
    assert events_of(answers[0].text)[-1] == "[DONE]"


def test_at_the_deadline_what_still_runs_ends_with_an_error(own_server: Live) -> None:
    own_server.engine.seconds_before_first = 30.0
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda stream=stream: answers.append(own_server.chat(stream=stream)))
        for stream in (False, True)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while len(own_server.engine.running) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    finished = own_server.in_loop(own_server.context.drain.finish(0.2))
    for thread in threads:
        thread.join(10)
    assert not finished
    for answer in answers:
        assert answer.status_code == 503
        assert "stopping" in answer.json()["error"]["message"]
    assert len(own_server.engine.aborted) == 2


def test_draining_an_idle_server_ends_at_once(own_server: Live) -> None:
    begin = time.monotonic()
    assert own_server.in_loop(own_server.context.drain.finish(30.0))
    assert time.monotonic() - begin < 1
