"""Deadlines count from a request's arrival: what waits here for its turn has less left, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from openautoglm.errors import DeadlineError
from openautoglm.serve.deadline import NO_DEADLINE, Deadline
from tests.serve.live import Live

ASKS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/embeddings", {"input": "a"}),
    ("/v1/responses", {"input": "a"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 8}),
]


def test_what_is_left_ends() -> None:
    now = 10.0
    deadline = Deadline(seconds=2.0, begin_seconds=9.0, clock=lambda: now)
    assert deadline.left_seconds() == 1.0
    now = 11.0
    with pytest.raises(DeadlineError, match="deadline_seconds 2 had passed"):
        deadline.left_seconds()
    assert NO_DEADLINE.left_seconds() is None


@pytest.fixture
def busy(server: Live) -> Iterator[threading.Event]:
    """Occupy the threads that read prompts until the event is set."""
    release = threading.Event()
    for _ in range(2):
        server.context.text_threads.submit(release.wait)
    yield release
    release.set()


@pytest.mark.parametrize(("path", "body"), ASKS)
def test_waiting_for_other_prompts_counts(server: Live, busy: threading.Event, path: str, body: dict) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.post, path, {**body, "deadline_seconds": 0.2})
        with pytest.raises(TimeoutError):
            answer.result(0.4)
        busy.set()
        response: httpx.Response = answer.result(10)
    assert response.status_code == 504
    assert server.engine.requests == []


@pytest.mark.parametrize(("path", "body"), ASKS)
def test_the_engine_gets_what_is_left(server: Live, path: str, body: dict) -> None:
    assert server.post(path, {**body, "deadline_seconds": 30}).status_code == 200
    left = server.engine.requests[-1].deadline_seconds
    assert left is not None
    assert 20 < left < 30
    assert server.post(path, body).status_code == 200
    assert server.engine.requests[-1].deadline_seconds is None
