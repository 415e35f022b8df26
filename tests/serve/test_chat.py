"""/v1/chat/completions: what clients read, whole and streamed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from openautoglm.spec.sampling import SamplingParams
from tests.serve.live import DEFAULTS, Live, events_of
from tests.serve.small_engine import CACHED_TOKENS

HELLO = [{"role": "user", "content": "hello"}]


def chunks_of(server: Live, **fields: object) -> list[dict[str, Any]]:
    response = server.chat(stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    data = events_of(response.text)
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_a_whole_answer(server: Live) -> None:
    answer = server.chat().json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "small"
    assert answer["system_fingerprint"] == "fp_small"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "0:hello", "refusal": None}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)
    prompt_tokens = len(server.tokenizer.encode("<|user|>hello<|assistant|>"))
    completion_tokens = len(server.tokenizer.encode("0:hello")) + 1
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_every_chunk_has_what_clients_check(server: Live) -> None:
    chunks = chunks_of(server, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *pieces, usage = chunks
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for chunk in pieces[1:]:
        assert "role" not in chunk["choices"][0]["delta"]
        assert chunk["choices"][0]["logprobs"] is None
    assert [chunk["choices"][0]["finish_reason"] for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert [chunk["usage"] for chunk in pieces] == [None] * len(pieces)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(server.tokenizer.encode("0:hello")) + 1
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces) == "0:hello"


def test_no_usage_unless_asked_for(server: Live) -> None:
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks_of(server))


def test_characters_are_never_cut(server: Live) -> None:
    text = "你好 👩‍👩‍👧 मान"
    chunks = chunks_of(server, text=text)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == f"0:{text}"
    assert not any("\ufffd" in piece for piece in pieces)


def test_choices_of_a_stream_are_told_apart_by_index(server: Live) -> None:
    chunks = chunks_of(server, n=3)
    texts = {0: "", 1: "", 2: ""}
    reasons: dict[int, list[str]] = {0: [], 1: [], 2: []}
    roles = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
        reasons[choice["index"]] += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == {0: "0:hello", 1: "1:hello", 2: "2:hello"}
    assert sorted(roles) == [0, 1, 2]
    assert reasons == {0: ["stop"], 1: ["stop"], 2: ["stop"]}


def test_a_stop_string_is_left_out_and_named(server: Live) -> None:
    answer = server.chat("one STOP two", stop=["STOP", "nothing"]).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"], answer["stop_reason"]) == ("0:one ", "stop", "STOP")
    chunks = chunks_of(server, text="one STOP two", stop="STOP")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "0:one "
    assert chunks[-1]["choices"][0]["stop_reason"] == "STOP"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(server: Live, name: str) -> None:
    answer = server.chat(**{name: 2}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


NULLS = ("temperature", "top_p", "stop", "n", "tools", "tool_choice", "seed", "response_format", "stream_options")
EMPTY = {
    "logit_bias": {}, "stop": [], "tools": [], "functions": [], "logprobs": False, "top_logprobs": 0, "stream": False,
    "service_tier": "auto", "store": False, "best_of": 1, "parallel_tool_calls": True, "tool_choice": "auto",
    "metadata": {"a": "b"}, "nobody_knows": [1],
}  # fmt: skip


@pytest.mark.parametrize("nothing", [dict.fromkeys(NULLS), EMPTY], ids=["nulls", "empty"])
def test_fields_that_ask_for_nothing_are_no_reason_to_refuse(server: Live, nothing: dict[str, object]) -> None:
    assert server.chat("x", **nothing).status_code == 200


def test_logprobs_in_the_chat_format(server: Live) -> None:
    choice = server.chat("é", logprobs=True, top_logprobs=2).json()["choices"][0]
    content = choice["logprobs"]["content"]
    # Bytes of a token need not be whole characters; joined they are the text.
    assert b"".join(bytes(entry["bytes"]) for entry in content) == "0:é<|endoftext|>".encode()
    for entry in content:
        assert entry["token"] == bytes(entry["bytes"]).decode("utf-8", "replace")
        assert entry["logprob"] == -0.5
        assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -1.5]
    without = server.chat("é", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert without[0]["top_logprobs"] == []
    streamed = chunks_of(server, text="é", logprobs=True, top_logprobs=2)
    joined = [entry for chunk in streamed for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert joined == content


def test_what_reaches_the_engine(server: Live) -> None:
    server.chat(
        max_tokens=7, min_tokens=2, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, n=2, seed=-5, stop=["x"],
        frequency_penalty=0.2, presence_penalty=-1, repetition_penalty=1.1, logit_bias={"5": -100, "7": 1.5},
        stop_token_ids=[9], include_stop_str_in_output=True, skip_special_tokens=False, priority=3,
    )  # fmt: skip
    request = server.engine.requests[-1]
    assert request.sampling == SamplingParams(
        max_tokens=7, min_tokens=2, temperature=0, top_p=0.5, top_k=0, min_p=0.1, n=2, seed=-5, stop=("x",),
        frequency_penalty=0.2, presence_penalty=-1, repetition_penalty=1.1, logit_bias=((5, -100), (7, 1.5)),
        stop_token_ids=(9,), include_stop=True, skip_special_tokens=False,
    )  # fmt: skip
    assert request.priority == 3


def test_a_silent_request_gets_the_models_defaults(server: Live) -> None:
    server.chat(temperature=None, max_tokens=None, stop=None)
    assert server.engine.requests[-1].sampling == DEFAULTS


def test_the_template_sees_roles_parts_tools_and_variables(server: Live) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    body = {"messages": messages, "chat_template_kwargs": {"loud": True}, "tool_choice": "none", "tools": [{}]}
    assert server.post("/v1/chat/completions", body).status_code == 200
    tokens = server.engine.requests[-1].prompt_tokens
    text = server.tokenizer.decode(tokens, skip_special_tokens=False)
    assert text == '<|system|>be brief<|user|>a\nb<|assistant|>{"x": [1]}<|user|>3!<|assistant|>'


def test_unknown_fields_are_tolerated_and_named(server: Live) -> None:
    answer = server.chat(
        nobody_knows_this={"a": 1}, user="me", metadata={}, parallel_tool_calls=True, service_tier="auto",
        response_format={"type": "text"}, best_of=1, tools=[], store=False, modalities=["text"], functions=None,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    notices = answer.json()["openautoglm"]["notices"]
    assert [notice["code"] for notice in notices] == ["fields_ignored"]
    assert "nobody_knows_this" in notices[0]["message"]
    for silent in ("user", "tools", "store", "best_of"):
        assert silent not in notices[0]["message"]


def test_the_phone_agents_request(server: Live) -> None:
    """What Open-AutoGLM sends, apart from the picture."""
    chunks = chunks_of(
        server, model="small", max_tokens=300, temperature=0.0, top_p=0.85, frequency_penalty=0.2, anything=1
    )
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "0:hello"


def test_the_openai_package_reads_it(server: Live) -> None:
    client = server.client()
    answer = client.chat.completions.create(model="org/alias", messages=HELLO, n=2, logprobs=True, top_logprobs=1)  # type: ignore[arg-type]
    assert [choice.message.content for choice in answer.choices] == ["0:hello", "1:hello"]
    assert answer.model == "org/alias"
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
    stream = client.chat.completions.create(
        model="small",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "0:hello"
    assert chunks[-1].usage is not None


def test_an_impossible_logprob_is_a_number(server: Live) -> None:
    from openautoglm.engine.client import TokenLogprob
    from openautoglm.serve.logprobs import chat_logprobs

    written = chat_logprobs(server.tokenizer, [TokenLogprob(token=1, logprob=-math.inf)])
    assert json.dumps(written, allow_nan=False)
