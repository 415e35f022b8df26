"""Clients that ask for more than a server can do: prompts up to the context and beyond, logprobs, several choices."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

WORDS = (
    "def", "class", "return", "import", "self", "value", "for", "while", "the", "answer", "memory", "字", "模型", "x1",
    "y2", "{}", "[]", "0x1f",
)  # fmt: skip
# What a server may answer under overload: done, or refused with a type. 400 is for requests that are wrong.
_PAUSE_SECONDS = 0.05  # before one who was refused asks again
ANSWERED = frozenset({200, 400, 413, 429, 503})


@dataclass
class Outcome:
    """What came back: statuses, and whatever was neither an answer nor a typed refusal."""

    statuses: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def make_request(draw: random.Random, context_tokens: int) -> tuple[str, dict[str, object]]:
    """Return the path and body of a request that may be anything between a word and more than the context."""
    length = draw.choice([5, 50, context_tokens // 4, context_tokens // 2, context_tokens - 40, context_tokens * 2])
    body: dict[str, object] = {
        "max_tokens": draw.choice([1, 16, 64, 200]),
        "n": draw.choice([1, 1, 1, 2, 8]),
        "stream": draw.random() < 0.5,
        "temperature": draw.choice([0.0, 1.0]),
        "priority": draw.choice([0, 0, 5]),
    }
    if draw.random() < 0.3:
        body["presence_penalty"] = 0.5
    if draw.random() < 0.5:
        text = " ".join(draw.choice(WORDS) for _ in range(length // 2))
        body["messages"] = [{"role": "user", "content": text}]
        if draw.random() < 0.4:
            body |= {"logprobs": True, "top_logprobs": draw.choice([0, 5, 20])}
        return "/v1/chat/completions", body
    body["prompt"] = [draw.randrange(300, 3000) for _ in range(length)]
    if draw.random() < 0.4:
        body["logprobs"] = draw.choice([0, 5, 20])
    if draw.random() < 0.1:
        body["truncate"] = "middle"
    return "/v1/completions", body


def _check(response: httpx.Response, text: str, *, stream: bool, outcome: Outcome) -> None:
    outcome.statuses[response.status_code] += 1
    if response.status_code not in ANSWERED:
        outcome.faults.append(f"{response.status_code}: {text[:300]}")
    elif response.status_code != 200:
        outcome.refusals[json.loads(text)["error"]["type"]] += 1
        time.sleep(_PAUSE_SECONDS)
    elif stream:
        events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        if not events or (events[-1] != "[DONE]" and "type" not in json.loads(events[-1]).get("error", {})):
            outcome.faults.append(f"a stream ended with {events[-1:]}")
    elif any(choice["finish_reason"] not in ("stop", "length") for choice in json.loads(text)["choices"]):
        outcome.faults.append(f"unfinished: {text[:300]}")


def _ask(
    client: httpx.Client, draw: random.Random, context_tokens: int, disconnect_share: float, outcome: Outcome
) -> None:
    path, body = make_request(draw, context_tokens)
    leaves = draw.random() < disconnect_share
    try:
        with client.stream("POST", path, json=body) as response:
            if leaves and response.status_code == 200:
                next(response.iter_raw(), None)
                outcome.statuses[0] += 1
                return
            text = response.read().decode()
        _check(response, text, stream=bool(body["stream"]), outcome=outcome)
    except httpx.HTTPError as error:
        outcome.faults.append(f"{type(error).__name__}: {error}")


def overload(
    url: str,
    *,
    num_clients: int,
    context_tokens: int,
    seconds: float = float("inf"),
    num_requests: int | None = None,
    disconnect_share: float = 0.0,
    seed: int = 1,
) -> Outcome:
    """Let clients ask one request after the other, without a pause, until time or requests are over."""
    outcome, end = Outcome(), time.monotonic() + seconds
    left = threading.Semaphore(1 << 30 if num_requests is None else num_requests)

    def client(index: int) -> None:
        draw = random.Random(seed * 1000 + index)
        # A client of its own: each has its connection, and leaves with it.
        with httpx.Client(base_url=url, timeout=120) as http:
            while time.monotonic() < end and left.acquire(blocking=False):
                _ask(http, draw, context_tokens, disconnect_share, outcome)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome
