"""Clients that ask for more than a server can do: prompts up to the context and beyond, logprobs, several choices.

Some leave before their answer, some send what no server should take. As a program, `python -m overload.clients URL
--requests 500` prints the outcome as JSON.
"""

from __future__ import annotations

import argparse
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
ANSWERED = frozenset({200, 400, 413, 429, 503})
REFUSED_AS_BAD = frozenset({400, 404, 405, 413, 415, 422})
LEFT = 0  # counted in place of a status: the client was gone first
MOST_NEW_TOKENS = 200
PATIENCE_SECONDS = 300.0  # of a client that does not leave
_PAUSE_SECONDS = 0.05  # before one who was refused asks again
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
# (path, body): each is wrong in its own way.
_BAD_REQUESTS: tuple[tuple[str, bytes], ...] = (
    (_CHAT, b"{"),
    (_CHAT, b"[]"),
    (_CHAT, b"\xff\xfe\x00"),
    (_CHAT, b'{"messages": []}'),
    (_CHAT, b'{"messages": "hello"}'),
    (_CHAT, b'{"messages": [{"role": "user", "content": "hello"}], "max_tokens": -1}'),
    (_CHAT, b'{"messages": [{"role": "user", "content": "hello"}], "model": "no-such-model"}'),
    (_CHAT, b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    (_TEXT, b'{"prompt": []}'),
    (_TEXT, b'{"prompt": [-1]}'),
    (_TEXT, b'{"prompt": "x", "temperature": -1}'),
    (_TEXT, b'{"prompt": [999999999]}'),
    (_TEXT, b'{"prompt": "x", "n": 100000}'),
    (_TEXT, b'{"prompt": "x", "logprobs": 1000}'),
    (_TEXT, b'{"prompt": "' + b"x" * 3_000_000 + b'"}'),
    ("/v1/no/such/route", b"{}"),
)


@dataclass
class Outcome:
    """What came back: statuses, and whatever was neither an answer nor a typed refusal.

    `touched` are ids of whole answers that say that the memory ladder touched them.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)


def make_request(
    draw: random.Random, context_tokens: int, most_new_tokens: int = MOST_NEW_TOKENS
) -> tuple[str, dict[str, object]]:
    """Return the path and body of a request that may be anything between a word and more than the context."""
    length = draw.choice([5, 50, context_tokens // 4, context_tokens // 2, context_tokens - 40, context_tokens * 2])
    body: dict[str, object] = {
        "max_tokens": min(most_new_tokens, draw.choice([1, 16, 64, MOST_NEW_TOKENS])),
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
        return _CHAT, body
    body["prompt"] = [draw.randrange(300, 3000) for _ in range(length)]
    if draw.random() < 0.4:
        body["logprobs"] = draw.choice([0, 5, 20])
    if draw.random() < 0.1:
        body["truncate"] = "middle"
    return _TEXT, body


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
    else:
        answer = json.loads(text)
        if any(choice["finish_reason"] not in ("stop", "length") for choice in answer["choices"]):
            outcome.faults.append(f"unfinished: {text[:300]}")
        if "requests" in answer.get("openautoglm", {}):
            outcome.touched.append(answer["id"])


def _ask(
    client: httpx.Client,
    draw: random.Random,
    request: tuple[str, dict[str, object]],
    *,
    leaves: bool,
    outcome: Outcome,
) -> None:
    path, body = request
    # One whose answer is no stream hears nothing before its end: that client leaves by the clock.
    patience_seconds = draw.uniform(0.01, 0.5) if leaves and not body["stream"] else PATIENCE_SECONDS
    try:
        with client.stream("POST", path, json=body, timeout=patience_seconds) as response:
            if leaves and response.status_code == 200:
                next(response.iter_raw(), None)
                outcome.statuses[LEFT] += 1
                return
            text = response.read().decode()
        _check(response, text, stream=bool(body["stream"]), outcome=outcome)
    except httpx.HTTPError as error:
        if leaves and isinstance(error, httpx.TimeoutException):
            outcome.statuses[LEFT] += 1
        else:
            outcome.faults.append(f"{type(error).__name__}: {error}")


def _ask_badly(client: httpx.Client, draw: random.Random, outcome: Outcome) -> None:
    path, body = draw.choice(_BAD_REQUESTS)
    try:
        response = client.post(path, content=body, headers={"content-type": "application/json"})
    except httpx.WriteError:  # a body that is too long is refused before it has come: the connection closes
        outcome.statuses[413] += 1
        return
    except httpx.HTTPError as error:
        outcome.faults.append(f"{type(error).__name__}: {error}")
        return
    outcome.statuses[response.status_code] += 1
    if response.status_code in REFUSED_AS_BAD or response.status_code == 429:
        outcome.refusals[response.json()["error"]["type"]] += 1
    else:
        outcome.faults.append(f"{response.status_code} for a bad request: {body[:80]!r}")


def overload(
    url: str,
    *,
    num_clients: int,
    context_tokens: int,
    seconds: float = float("inf"),
    num_requests: int | None = None,
    disconnect_share: float = 0.0,
    bad_share: float = 0.0,
    most_new_tokens: int = MOST_NEW_TOKENS,
    stop: threading.Event | None = None,
    seed: int = 1,
) -> Outcome:
    """Let clients ask one request after the other, until time or requests are over, or `stop` is set."""
    outcome, end = Outcome(), time.monotonic() + seconds
    stop = threading.Event() if stop is None else stop
    left = threading.Semaphore(1 << 30 if num_requests is None else num_requests)

    def client(index: int) -> None:
        draw = random.Random(seed * 1000 + index)
        # A client of its own: each has its connection, and leaves with it.
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as http:
            while time.monotonic() < end and not stop.is_set() and left.acquire(blocking=False):
                if draw.random() < bad_share:
                    _ask_badly(http, draw, outcome)
                else:
                    request = make_request(draw, context_tokens, most_new_tokens)
                    _ask(http, draw, request, leaves=draw.random() < disconnect_share, outcome=outcome)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--disconnect-share", type=float, default=0.0)
    parser.add_argument("--bad-share", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    outcome = overload(
        arguments.url,
        num_clients=arguments.clients,
        context_tokens=arguments.context,
        num_requests=arguments.requests,
        disconnect_share=arguments.disconnect_share,
        bad_share=arguments.bad_share,
        seed=arguments.seed,
    )
    print(json.dumps(vars(outcome)))


if __name__ == "__main__":
    main()
