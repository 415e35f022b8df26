"""Clients of a real server that leave or hardly read: what they held is free at once, and nobody else notices."""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from openautoglm.engine.options import EngineOptions
from openautoglm.units import KIB
from tests.serve.test_end_to_end import Server, running

FREE_SECONDS = 0.5
NUM_ATTEMPTS = 5
LONG_EVERY = 32
NUM_QUEUED = 512
READ_SECONDS = 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One sequence at a time, in small steps: others wait, and a long prompt takes its time."""
    arguments = ("--max-running", "1", "--chunk", "16", "--max-queued", str(NUM_QUEUED))
    with tempfile.TemporaryDirectory(prefix="oag-") as name, running(Path(name), *arguments) as it:
        yield it


def send(server: Server, *, receive_bytes: int | None = None, **fields: object) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    body = json.dumps({"stream": True, "ignore_eos": True, **fields}).encode()
    connection = socket.socket()
    connection.settimeout(30)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((host, int(port)))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    return connection


def used_blocks(server: Server) -> float:
    return server.metric('openautoglm_kv_blocks{model_name="demo",state="used"}')


def waiting(server: Server) -> float:
    return server.metric('vllm:num_requests_waiting{model_name="demo"}')


def within(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_in_the_queue(server: Server) -> None:
    with send(server, prompt="def ", max_tokens=2000) as running_now:
        assert running_now.recv(1)
        queued = [send(server, prompt="class ", max_tokens=500) for _ in range(3)]
        within(10, lambda: waiting(server) == 3)
        for connection in queued:
            connection.close()
        within(FREE_SECONDS, lambda: waiting(server) == 0)
    within(FREE_SECONDS, lambda: used_blocks(server) == 0)
    assert server.chat()


def test_in_the_prompt(server: Server) -> None:
    generated = server.metric('vllm:generation_tokens_total{model_name="demo"}')
    # Different beginnings, so that none is found in the cache of another.
    prompts = [[100 + index, *([101, 102, 103, 104] * 400)] for index in range(8)]
    connection = send(server, prompt=prompts, max_tokens=1)
    within(10, lambda: used_blocks(server) > 0)
    connection.close()
    within(FREE_SECONDS, lambda: used_blocks(server) == 0 and waiting(server) == 0)
    # It was left before the prompts were through.
    assert server.metric('vllm:generation_tokens_total{model_name="demo"}') - generated < len(prompts)
    assert server.chat()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_in_the_answer(server: Server, how: str) -> None:
    connection = send(server, prompt="def ", max_tokens=2000)
    assert connection.recv(1)
    within(10, lambda: used_blocks(server) > 0)
    if how == "reset":
        # No goodbye: the kernel drops what is unread and says so.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    if how == "half":
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    within(FREE_SECONDS, lambda: used_blocks(server) == 0)
    assert server.chat()


def test_while_a_whole_answer_is_made(server: Server) -> None:
    connection = send(server, prompt="def ", max_tokens=2000, stream=False)
    within(10, lambda: used_blocks(server) > 0)
    connection.close()
    within(FREE_SECONDS, lambda: used_blocks(server) == 0)


def num_ended(server: Server) -> float:
    """How many requests have had their answer to the end."""
    samples = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in samples if line.startswith("vllm:request_success_total{"))


def when_it_is_full(server: Server) -> tuple[list[tuple[httpx.Response, float]], bool]:
    """Fill the queue; return what five that come then are answered, in how many seconds, and whether it stayed full."""
    connections: list[socket.socket] = []

    def is_full() -> bool:
        # However slow the machine, another follows those that end meanwhile.
        nonlocal before
        before = num_ended(server)
        missing = NUM_QUEUED - int(waiting(server))
        for _ in range(min(missing, LONG_EVERY)):
            fill()
        return missing == 0

    def fill() -> None:
        # Some keep it busy for long, and the memory that answers may take has room for so many of them. None is a
        # stream, which would be ended because nobody reads it.
        most = 2000 if len(connections) % LONG_EVERY == 0 else 1
        connections.append(send(server, prompt="class ", max_tokens=most, stream=False))

    try:
        for _ in range(NUM_QUEUED + 1):
            fill()
        before = 0.0
        within(30, is_full)
        answers = []
        with httpx.Client(base_url=server.url, timeout=60) as client:
            client.get("/health")
            for _ in range(5):
                begin = time.monotonic()
                answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
                answers.append((answer, time.monotonic() - begin))
        return answers, num_ended(server) == before
    finally:
        for connection in connections:
            connection.close()


def test_the_queue_is_bounded_and_says_so_at_once(server: Server) -> None:
    """Who comes when 512 wait is told within 0.1 s when to come again; by default half as many may."""
    assert inspect.signature(EngineOptions).parameters["max_queued"].default == NUM_QUEUED // 2
    for _ in range(NUM_ATTEMPTS):
        answers, stayed_full = when_it_is_full(server)
        within(5, lambda: waiting(server) == 0 and used_blocks(server) == 0)
        # The one that runs may have ended meanwhile, which gives a place in the queue to the next to come.
        if stayed_full:
            break
    for answer, _ in answers:
        assert answer.status_code == httpx.codes.TOO_MANY_REQUESTS, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "overloaded"
    assert min(seconds for _, seconds in answers) < 0.1
    assert server.chat()


def private_bytes(pid: int) -> int:
    """What a process holds for itself."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in fields if line.startswith("Private_"))


def test_readers_of_a_byte_per_second_hold_little_and_change_nothing_for_others() -> None:
    """Not shown: that they take no time from others, which depends on the machine's load."""
    num_readers = 64
    with (
        tempfile.TemporaryDirectory(prefix="oag-") as name,
        running(Path(name), "--max-running", "72", "--context", "1024") as server,
    ):
        expected = server.chat()
        readers = []
        # Once beforehand, so that what the first requests leave behind is no difference.
        for max_tokens in (1, 900):
            for connection in readers:
                connection.close()
            within(5, lambda: used_blocks(server) == 0)
            before = private_bytes(server.process.pid)
            readers = []
            for index in range(num_readers):
                connection = send(server, prompt=[100 + index], max_tokens=max_tokens, receive_bytes=2048)
                connection.setblocking(False)
                readers.append(connection)
            within(20, lambda: waiting(server) == 0)
        most, generated, asked = 0, -1.0, time.monotonic()
        # Until all their answers are made or given up; what they may hold is full long before.
        while time.monotonic() - asked < READ_SECONDS and generated != (
            now := server.metric('vllm:generation_tokens_total{model_name="demo"}')
        ):
            generated = now
            for connection in readers:
                with contextlib.suppress(BlockingIOError):
                    connection.recv(1)
            begin = time.monotonic()
            while time.monotonic() - begin < 1:
                most = max(most, private_bytes(server.process.pid) - before)
                time.sleep(0.1)
        assert server.chat() == expected
        assert most <= num_readers * 64 * KIB
        for connection in readers:
            connection.close()
        within(5, lambda: used_blocks(server) == 0)
