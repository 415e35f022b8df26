"""Overflow is refused with its numbers; a prompt is cut only on request, and what was cut is told."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openautoglm.serve.truncation import HEAD, MIDDLE, cut_prompt, prompt_room
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, events_of, live_server

CONTEXT = 512
LONG = list(range(100, 300)) * 4  # 800 tokens


@pytest.fixture(scope="module")
def strict(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, strict=True) as live:
        yield live


@given(
    num_marks=st.integers(0, 5),
    length=st.integers(0, 60),
    room=st.integers(1, 70),
    side=st.sampled_from([HEAD, MIDDLE]),
)
def test_what_is_kept_and_what_is_cut_make_the_prompt(num_marks: int, length: int, room: int, side: str):
    tokens = [1, 2, 1, 2, 1][:num_marks] + list(range(100, 100 + length))
    kept, cut = cut_prompt(tokens, side=side, room=room, marks={1, 2})
    if cut is None:
        assert list(kept) == tokens
        assert len(tokens) <= room or num_marks >= room
        return
    assert len(kept) == room
    assert cut.num_prompt_tokens == len(tokens)
    dropped = tokens[cut.begin : cut.begin + cut.num_tokens]
    assert [*kept[: cut.begin], *dropped, *kept[cut.begin :]] == tokens
    assert list(kept[:num_marks]) == tokens[:num_marks]
    before, after = cut.begin - num_marks, len(kept) - cut.begin
    assert before == 0 if side == "head" else after - before in (0, 1)


def test_room_is_left_for_the_answer():
    assert prompt_room(SamplingParams(max_tokens=100), 512) == 412
    assert prompt_room(SamplingParams(), 512) == 384
    assert prompt_room(SamplingParams(min_tokens=400), 512) == 112


def test_overflow_names_the_limit_and_the_count(server: Live):
    answer = server.post("/v1/completions", {"prompt": LONG})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "800 tokens" in error["message"]
    assert f"context holds {CONTEXT}" in error["message"]


@pytest.mark.parametrize(("side", "begin"), [("head", 0), ("middle", (CONTEXT - 40) // 2)])
def test_a_prompt_is_cut_on_request(server: Live, side: str, begin: int):
    answer = server.post("/v1/completions", {"prompt": LONG, "max_tokens": 40, "truncate": side})
    assert answer.status_code == 200, answer.text
    sent = list(server.engine.requests[-1].prompt_tokens)
    num_cut = 800 - (CONTEXT - 40)
    assert sent == LONG[:begin] + LONG[begin + num_cut :]
    told = answer.json()["openautoglm"]
    assert told["truncated"] == [
        {"prompt": 0, "side": side, "dropped_tokens": num_cut, "begin": begin, "end": begin + num_cut,
         "prompt_tokens_before": 800}
    ]  # fmt: skip
    assert [notice["code"] for notice in told["notices"]] == ["prompt_truncated"]
    assert answer.json()["usage"]["prompt_tokens"] == CONTEXT - 40


def test_a_cut_chat_tells_in_its_first_chunk(server: Live):
    answer = server.chat("word " * 200, max_tokens=20, truncate="head", stream=True)
    assert answer.status_code == 200, answer.text
    chunks = [json.loads(event) for event in events_of(answer.text) if event != "[DONE]"]
    assert chunks[0]["openautoglm"]["truncated"][0]["side"] == "head"
    assert not any("openautoglm" in chunk for chunk in chunks[1:])
    assert len(server.engine.requests[-1].prompt_tokens) == CONTEXT - 20


def test_an_echoed_prompt_is_the_one_that_was_used(server: Live):
    text = "word " * 200
    answer = server.post(
        "/v1/completions", {"prompt": text, "max_tokens": 40, "truncate": "head", "echo": True, "model": "small"}
    )
    kept = server.engine.requests[-1].prompt_tokens
    assert answer.json()["choices"][0]["text"].startswith(server.tokenizer.decode(kept))


def test_a_prompt_that_fits_is_left_alone(server: Live):
    answer = server.chat("hello", truncate="middle")
    assert answer.status_code == 200
    assert "openautoglm" not in answer.json()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"truncate": "tail"}, "truncate"),
        ({"truncate": True}, "truncate"),
        ({"truncate": "head", "prompt": LONG * 3}, "2400 tokens and the context holds 512"),
        ({"truncate": "head", "max_tokens": CONTEXT}, "512"),
    ],
)
def test_what_cannot_be_cut_is_refused(server: Live, fields: dict[str, object], says: str):
    answer = server.post("/v1/completions", {"prompt": LONG, **fields})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


def test_a_strict_server_cuts_and_ignores_nothing(strict: Live):
    cut = strict.post("/v1/completions", {"prompt": LONG, "truncate": "head"})
    assert cut.status_code == 400
    assert cut.json()["error"]["param"] == "truncate"
    ignored = strict.chat(nobody_knows_this=1)
    assert ignored.status_code == 400
    assert ignored.json()["error"]["param"] == "nobody_knows_this"
    assert strict.chat(user="me", truncate="head").status_code == 200
