"""What a key may use: rates, requests at once and KV cache, and what its clients are told."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.access import AccessOptions, Caller
from openautoglm.serve.keys import KeyLimits, KeyRecord, Role, change_keys
from openautoglm.serve.limits import Bucket, Limits, Wish
from openautoglm.serve.replies import ErrorReply, ReplyError
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.small_engine import overloaded

# What the small engine says of a block.
BLOCK_BYTES = 7


@contextmanager
def limited(tokenizer: Tokenizer, directory: Path, **limits: int) -> Iterator[Live]:
    """Run a server with a limited key, `small`, and a free one, `free`."""
    records = tuple(
        KeyRecord(
            name=name, roles=(Role.USER,), sha256=hashlib.sha256(name.encode()).hexdigest(), created=0, limits=own
        )
        for name, own in (("small", KeyLimits(**limits)), ("free", KeyLimits()))
    )
    change_keys(directory / "keys.json", lambda _: records)
    with live_server(tokenizer, access=AccessOptions(keys_file=directory / "keys.json")) as server:
        server.http.headers["Authorization"] = "Bearer small"
        yield server


def refused(answer: httpx.Response, kind: str) -> int:
    """Check a refusal as a client sees it; return after how many seconds to come again."""
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, "rate_limit_exceeded", None)
    assert re.search(r"try again in \d+ s$", error["message"])
    return int(answer.headers["retry-after"])


def test_requests_per_minute(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, requests_per_minute=60) as server:
        first = server.get("/v1/models")
        assert first.headers["x-ratelimit-limit-requests"] == "60"
        assert int(first.headers["x-ratelimit-remaining-requests"]) == 59
        assert "x-ratelimit-limit-tokens" not in first.headers
        answers = [server.get("/v1/models") for _ in range(62)]
        late = [answer for answer in answers if answer.status_code != 200]
        # One comes back each second, which the requests themselves may take.
        assert 1 <= len(late) <= 3
        assert refused(late[-1], "requests") == 1
        assert late[-1].headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"1m0s|\d\d?(\.\d)?s", late[-1].headers["x-ratelimit-reset-requests"])
        client = server.client("small")
        with pytest.raises(openai.RateLimitError):
            _ = [client.models.list() for _ in range(3)]
        # Others do not notice, and neither do probes.
        assert server.get("/v1/models", headers={"Authorization": "Bearer free"}).status_code == 200
        assert (
            "x-ratelimit-limit-requests"
            not in server.get("/v1/models", headers={"Authorization": "Bearer free"}).headers
        )
        assert server.get("/health").status_code == 200
        time.sleep(1.1)
        assert server.get("/v1/models").status_code == 200


def test_tokens_per_minute(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, tokens_per_minute=100) as server:
        body = {"prompt": [66] * 40, "max_tokens": 30}
        answer = server.post("/v1/completions", body)
        used = answer.json()["usage"]["total_tokens"]
        assert used == 70
        # What it has at the beginning of the answer, which is whole here.
        assert 30 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 32
        assert refused(server.post("/v1/completions", body), "tokens") in (5, 6)
        # Smaller prompts still pass, and an answer may overdraw: the next one waits for it.
        assert server.post("/v1/completions", {"prompt": [66] * 20, "max_tokens": 30}).status_code == 200
        again = server.post("/v1/completions", {"prompt": [66], "max_tokens": 1})
        assert refused(again, "tokens") in range(9, 14)
        assert again.headers["x-ratelimit-remaining-tokens"] == "0"
        assert server.get("/v1/models").status_code == 200


def test_what_the_engine_refuses_is_given_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, tokens_per_minute=50, kv_bytes=100 * BLOCK_BYTES) as server:
        server.engine.refuse = overloaded()
        for _ in range(5):
            answer = server.post("/v1/completions", {"prompt": [66] * 40, "max_tokens": 1})
            assert answer.json()["error"]["code"] == "overloaded"
        server.engine.refuse = None
        assert server.post("/v1/completions", {"prompt": [66] * 40, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_requests_at_once(tokenizer: Tokenizer, tmp_path: Path, stream: bool) -> None:
    with limited(tokenizer, tmp_path, max_requests=2) as server:
        server.engine.seconds_before_first = 1.0
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(server.chat(stream=stream))) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while len(server.engine.running) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for _ in range(3):
            begin = time.monotonic()
            assert refused(server.chat(), "requests") == 1
            assert time.monotonic() - begin < 0.1
        for thread in threads:
            thread.join(10)
        assert [answer.status_code for answer in answers] == [200, 200]
        server.engine.seconds_before_first = 0.0
        assert server.chat().status_code == 200


def test_what_a_stream_held_is_free_when_its_client_sees_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, max_requests=1, kv_bytes=3 * BLOCK_BYTES) as server:
        body = {"prompt": [66] * 17, "max_tokens": 20, "stream": True}
        assert [server.post("/v1/completions", body).status_code for _ in range(30)] == [200] * 30


def test_kv_cache_of_all_requests_of_a_key(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, kv_bytes=10 * BLOCK_BYTES) as server:
        never = server.post("/v1/completions", {"prompt": [66] * 100, "max_tokens": 61})
        assert never.status_code == 400
        assert never.json()["error"]["param"] == "max_tokens"
        # Without max_tokens an answer may fill the context, which is more than the key may have.
        assert server.chat().status_code == 400
        assert server.chat(max_tokens=9).status_code == 200
        server.engine.seconds_before_first = 1.0
        body = {"prompt": [66] * 64, "max_tokens": 32}
        running = threading.Thread(target=lambda: server.post("/v1/completions", body))
        running.start()
        deadline = time.monotonic() + 10
        while not server.engine.running:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert refused(server.post("/v1/completions", body), "kv_bytes") == 1
        running.join(10)
        assert server.post("/v1/completions", body).status_code == 200


def test_changed_limits_hold_at_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with limited(tokenizer, tmp_path, requests_per_minute=1) as server:
        assert server.get("/v1/models").status_code == 200
        assert server.get("/v1/models").status_code == 429
        with_more = KeyRecord(
            name="small", roles=(Role.USER,), sha256=hashlib.sha256(b"small").hexdigest(), created=0,
            limits=KeyLimits(requests_per_minute=2),
        )  # fmt: skip
        change_keys(tmp_path / "keys.json", lambda _: (with_more,))
        assert server.context.access.reload_if_changed()
        assert [server.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    per_minute=st.integers(1, 10_000),
    moves=st.lists(st.tuples(st.floats(0, 50), st.integers(0, 500)), max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_over_any_time_no_more_passes_than_the_rate_and_one_minute(
    per_minute: int, moves: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken = []
    for seconds, amount in moves:
        clock.now += seconds
        if bucket.level >= amount:
            bucket.take(amount)
            taken.append((clock.now, amount))
        else:
            wait = bucket.seconds_until(amount)
            if amount <= per_minute:
                clock.now += wait + 1e-6
                assert bucket.level >= amount - 1e-3
    for index, (start, _) in enumerate(taken):
        for end, _ in taken[index:]:
            within = sum(amount for now, amount in taken if start <= now <= end)
            assert within <= per_minute * (1 + (end - start) / 60) + 1e-3


def caller(**limits: int) -> Caller:
    return Caller(name="k", roles=frozenset({Role.USER}), limits=KeyLimits(**limits))


def wish(*prompts: int, n: int = 1, most: int | None = 10) -> Wish:
    return Wish(prompt_tokens=prompts, num_choices=n, max_tokens=most, context_tokens=512)


@pytest.mark.parametrize(
    ("asked", "blocks"),
    [
        (wish(16, most=16), 2),
        (wish(16, most=17), 3),
        (wish(1, most=1), 1),
        # Choices share whole blocks of the prompt: two, and each its own three.
        (wish(40, n=4, most=40), 2 + 4 * 3),
        (wish(40, 40, most=40), 10),
        (wish(500, most=400), 32),
        (wish(10, most=None), 32),
    ],
)
def test_the_price_in_blocks(asked: Wish, blocks: int) -> None:
    assert asked.kv_blocks() == blocks
    limits = Limits(kv_block_bytes=100)
    fits = limits.of(caller(kv_bytes=100 * blocks))
    assert fits is not None
    fits.begin(asked)
    tight = limits.of(caller(kv_bytes=100 * blocks - 1))
    assert tight is not None
    with pytest.raises(InvalidRequestError):
        tight.begin(asked)


def test_a_prompt_of_more_than_a_minute_waits_for_a_full_bucket() -> None:
    clock = Clock()
    allowance = Limits(kv_block_bytes=1, clock=clock).of(caller(tokens_per_minute=60))
    assert allowance is not None
    allowance.begin(wish(200)).close(taken=True)
    with pytest.raises(ReplyError) as refusal:
        allowance.begin(wish(200))
    # 140 are owed, and it must be full again.
    assert dict(refusal.value.reply.headers)["Retry-After"] == "200"
    clock.now += 199
    with pytest.raises(ReplyError):
        allowance.begin(wish(200))
    clock.now += 1
    allowance.begin(wish(200))


def test_callers_at_rest_are_forgotten_and_busy_ones_are_not() -> None:
    clock = Clock()
    limits = Limits(kv_block_bytes=1, clock=clock)
    busy = limits.of(caller(max_requests=1))
    assert busy is not None
    assert busy.enter() is None
    for index in range(10_000):
        one = limits.of(Caller(name=f"c{index}", roles=frozenset(), limits=KeyLimits(requests_per_minute=5)))
        assert one is not None
        assert one.enter() is None
        one.leave()
        clock.now += 1
    assert len(limits._allowances) <= 4097
    again = limits.of(caller(max_requests=1))
    assert again is busy
    assert isinstance(again.enter(), ErrorReply)
