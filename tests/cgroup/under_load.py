"""What tests do to a server under load: ask it beside its clients, compare answers, look at its memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from overload.clients import PATIENCE_SECONDS, Outcome, overload
from tests.cgroup.served import planned_bytes

CONTEXT, CONCURRENCY, CHUNK, QUANT, KV = 512, 14, 128, "int8", "bf16"
ADMIN_KEY = "admin-of-the-test"
SETTINGS = ("--context", str(CONTEXT), "--concurrency", str(CONCURRENCY), "--max-running", "8", "--max-queued", "24",
            "--quant", QUANT, "--kv", KV, "--chunk", str(CHUNK), "--admin-key", ADMIN_KEY)  # fmt: skip
NUM_CLIENTS, MOST_NEW_TOKENS = 16, 12
PROMPTS = [[300 + 7 * index + step for step in range(40 * index + 20)] for index in range(4)]
_HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


def planned_budget(model: str) -> int:
    """The least budget of a server with these settings: the pool is most of it."""
    return planned_bytes(model, quant=QUANT, kv=KV, context_tokens=CONTEXT, concurrency=CONCURRENCY, chunk_tokens=CHUNK)


def ask(url: str, prompt: list[int], max_tokens: int) -> dict[str, object]:
    """Return the greedy answer to a prompt, ahead of other clients; who is refused with a type asks again."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "priority": -1}
    while True:
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_SECONDS)
        found: dict[str, object] = answer.json()
        if answer.status_code == 200:
            return found
        assert answer.status_code in (429, 503), answer.text
        assert found["error"]["type"]  # type: ignore[index]
        time.sleep(0.1)


def answers(url: str) -> list[object]:
    """Return greedy answers to fixed prompts: what must not change, whatever the memory."""
    return [ask(url, prompt, 12)["choices"] for prompt in PROMPTS]


def fill(url: str, num_prompts: int = CONCURRENCY) -> None:
    """Fill the pool with prefixes: prompts of nearly the whole context, of which no two begin alike."""
    for first in range(num_prompts):
        ask(url, [1000 + first, *range(300, 300 + CONTEXT - 20)], 1)


@contextlib.contextmanager
def loaded(url: str) -> Iterator[list[Outcome]]:
    """Ask more than the server can do while the block runs; the list has the outcome after it."""
    outcomes: list[Outcome] = []
    stop = threading.Event()

    def ask_all() -> None:
        outcomes.append(
            overload(url, num_clients=NUM_CLIENTS, context_tokens=CONTEXT, most_new_tokens=MOST_NEW_TOKENS, stop=stop)
        )

    clients = threading.Thread(target=ask_all)
    clients.start()
    try:
        yield outcomes
    finally:
        stop.set()
        clients.join()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until `condition()` holds; return the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + seconds, what
        time.sleep(0.05)
    return time.monotonic() - begin


def memory(url: str, announced_bytes: int | None = None) -> dict[str, object]:
    """Return what the server says of its memory, after a new budget was announced to it, if one is."""
    if announced_bytes is None:
        answer = httpx.get(f"{url}/admin/memory", headers=_HEADERS, timeout=30)
    else:
        answer = httpx.post(f"{url}/admin/memory", headers=_HEADERS, json={"memory": announced_bytes}, timeout=30)
    assert answer.status_code == 200, answer.text
    report: dict[str, object] = answer.json()
    return report
