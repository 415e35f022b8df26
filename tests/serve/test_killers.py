"""No request ends another's: while each of a table of killers is answered, a canary's streams stay as they are."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.killers import HANGUPS, KILLERS, PARAMETERS, PROTOCOL, STRUCTURES, TEXTS, Hangup, Killer
from tests.serve.test_end_to_end import QUESTION, Server, running

ANSWER_SECONDS = 20.0
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"


SONG = {
    "messages": [QUESTION], "max_tokens": 60, "ignore_eos": True, "temperature": 0.8, "seed": 7, "stream": True,
    "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True},
}  # fmt: skip


class Canary(threading.Thread):
    """Streams one answer again and again; each must be the first one, to the last bit of its logprobs."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client = httpx.Client(base_url=url, timeout=ANSWER_SECONDS)
        self._stopped = threading.Event()
        self.expected = self.sing()
        self.num_songs = 0
        self.wrong: list[object] = []

    def sing(self) -> tuple[str, object, object, object]:
        answer = self._client.post("/v1/chat/completions", json=SONG)
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
        assert (answer.status_code, lines[-1]) == (200, "[DONE]"), answer.text
        chunks = [json.loads(line) for line in lines[:-1]]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        logprobs = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        usage = {name: chunks[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        return text, logprobs, choices[-1]["finish_reason"], usage

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                song = self.sing()
            except (AssertionError, httpx.HTTPError) as error:
                self.wrong.append(error)
                return
            if song != self.expected:
                self.wrong.append(song)
            self.num_songs += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(ANSWER_SECONDS)
        self._client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="oag-") as name,
        running(Path(name), "--max-running", "6", "--chunk", "64", "--context", "1024") as it,
    ):
        yield it


@pytest.fixture(scope="module")
def canary(server: Server) -> Iterator[Canary]:
    engine = server.children()["engine"]
    bird = Canary(server.url)
    bird.start()
    yield bird
    bird.stop()
    assert not bird.wrong
    assert bird.num_songs > 10
    assert server.children()["engine"] == engine
    deadline = time.monotonic() + 5
    while server.metric('openautoglm_kv_blocks{model_name="demo",state="used"}') > 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Traceback" not in server.errors.read_text()


def test_the_table_is_long_enough() -> None:
    assert len(KILLERS) == sum(map(len, (PARAMETERS, TEXTS, STRUCTURES, PROTOCOL))), "a name was given twice"
    assert len(KILLERS) + len(HANGUPS) >= 60


@pytest.mark.parametrize("name", list(KILLERS))
def test_a_killer_is_answered_and_the_canary_sings_on(server: Server, canary: Canary, name: str) -> None:
    killer: Killer = KILLERS[name]
    request = httpx.Request(
        killer.method, server.url + killer.path, content=killer.content(), headers=list(killer.headers)
    )
    with httpx.Client(timeout=ANSWER_SECONDS) as client:
        answer = client.send(request)
    assert answer.status_code in killer.statuses, answer.text[:500]
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.content) < 5000
    assert not canary.wrong


@pytest.mark.parametrize("name", list(HANGUPS))
def test_a_client_that_goes_leaves_the_canary_singing(server: Server, canary: Canary, name: str) -> None:
    hangup: Hangup = HANGUPS[name]
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(hangup.sent)
        num_read = 0
        while num_read < hangup.read_bytes:
            piece = connection.recv(hangup.read_bytes - num_read)
            assert piece, "the server hung up first"
            num_read += len(piece)
        time.sleep(hangup.pause_seconds)
        if hangup.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert not canary.wrong


def test_all_at_once(server: Server, canary: Canary) -> None:
    """As fast as eight clients can send them, so that killers meet each other and the queue fills."""
    names, strange = list(KILLERS), list[str]()
    lock = threading.Lock()

    def send() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while True:
                with lock:
                    if not names:
                        return
                    name = names.pop()
                killer = KILLERS[name]
                answer = client.request(
                    killer.method, killer.path, content=killer.content(), headers=list(killer.headers)
                )
                if answer.status_code not in killer.statuses | {429}:
                    strange.append(f"{name}: {answer.status_code} {answer.text[:200]}")

    senders = [threading.Thread(target=send) for _ in range(8)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    assert not strange
    assert not canary.wrong
