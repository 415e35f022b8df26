"""/v1/messages: what Anthropic's clients read, whole and streamed, and how they are refused."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from openautoglm.serve.access import AccessOptions
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.small_engine import CACHED_TOKENS, overloaded

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]


def client_of(server: Live, key: str = "EMPTY") -> anthropic.Anthropic:
    return server.anthropic_client(key)


def events_of(server: Live, **fields: object) -> list[dict[str, Any]]:
    response = server.post(PATH, {"messages": HELLO, "max_tokens": 50, "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_whole_message_as_the_client_reads_it(server: Live) -> None:
    message = client_of(server).messages.create(model="small", max_tokens=50, system="be kind", messages=HELLO)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "small")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "0:be kindhello"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    tokens = server.tokenizer.encode("<|system|>be kind<|user|>hello<|assistant|>")
    assert message.usage.input_tokens == len(tokens) - CACHED_TOKENS
    assert message.usage.cache_read_input_tokens == CACHED_TOKENS
    assert message.usage.output_tokens == len(server.tokenizer.encode("0:be kindhello")) + 1
    assert server.engine.requests[0].prompt_tokens == tuple(tokens)


def test_the_parameters_reach_the_engine(server: Live) -> None:
    fields = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["llo"], "seed": 3, "priority": 2}
    answer = server.post(PATH, {"messages": HELLO, "max_tokens": 50, **fields}).json()
    assert answer["content"][0]["text"] == "0:he"
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "llo")
    request = server.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.25, 7, 3)
    assert (sampling.max_tokens, sampling.stop, request.priority) == (50, ("llo",), 2)


def test_a_message_that_is_cut_says_so(server: Live) -> None:
    message = client_of(server).messages.create(model="small", max_tokens=2, messages=HELLO)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 2


def test_the_events_of_a_stream(server: Live) -> None:
    start, block, *deltas, block_stop, delta, stop = events_of(server)
    assert start["type"] == "message_start"
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["cache_read_input_tokens"] == CACHED_TOKENS
    assert block == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {one["type"] for one in deltas} == {"content_block_delta"}
    assert "".join(one["delta"]["text"] for one in deltas) == "0:hello"
    assert block_stop == {"type": "content_block_stop", "index": 0}
    assert delta["type"] == "message_delta"
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == len(server.tokenizer.encode("0:hello")) + 1
    assert stop == {"type": "message_stop"}


def test_a_stream_is_the_whole_message_to_the_client(server: Live) -> None:
    client = client_of(server)
    with client.messages.stream(model="small", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "0:hello"
        streamed = stream.get_final_message()
    whole = client.messages.create(model="small", max_tokens=50, messages=HELLO)
    assert streamed.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (streamed.stop_reason, streamed.usage.to_dict()) == (whole.stop_reason, whole.usage.to_dict())


def test_a_slow_prompt_is_counted_in_the_first_event(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, ping_seconds=0.05) as server:
        server.engine.seconds_before_first = 0.3
        client = client_of(server)
        with client.messages.stream(model="small", max_tokens=50, messages=HELLO) as stream:
            events = list(stream)
            assert stream.get_final_message().usage.cache_read_input_tokens == CACHED_TOKENS
    assert events[0].type == "message_start"
    assert events[0].message.usage.input_tokens == len(tokenizer.encode("<|user|>hello<|assistant|>"))


def test_earlier_turns_with_tools(server: Live) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather?", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    count = client_of(server).messages.count_tokens(model="small", messages=messages)  # type: ignore[arg-type]
    text = '<|user|>weather?<|assistant|>let me see{"city": "Bonn"}<|user|>rain<|user|>so?<|assistant|>'
    assert count.input_tokens == len(server.tokenizer.encode(text))
    server.post(PATH, {"messages": messages, "max_tokens": 1})
    assert server.engine.requests[0].prompt_tokens == tuple(server.tokenizer.encode(text))


def test_a_conversation_that_is_too_long_is_counted_all_the_same(server: Live) -> None:
    messages = [{"role": "user", "content": "word " * 300}]
    counted = server.post(f"{PATH}/count_tokens", {"messages": messages})
    assert counted.json()["input_tokens"] > 512
    assert server.post(PATH, {"messages": messages, "max_tokens": 1}).status_code == 400


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "text"}]}, "system[0]"),
        ({"system": 7}, "system"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 500}, "stop_sequences"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "enable_thinking"),
        ({"thinking": {"type": "much"}}, "thinking"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].function.parameters"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "http://localhost"}]}, "mcp_servers"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"model": "gpt-4"}, "model"),
    ],
)
def test_what_is_refused_is_named(server: Live, fields: dict[str, object], named: str) -> None:
    response = server.post(PATH, {"messages": HELLO, "max_tokens": 9, **fields})
    body = response.json()
    assert response.status_code == (404 if named == "model" else 400)
    assert body["type"] == "error"
    assert body["error"]["type"] == ("not_found_error" if named == "model" else "invalid_request_error")
    assert body["error"]["param"] == named
    assert body["request_id"] == response.headers["x-request-id"]
    assert not server.engine.requests


def test_what_asks_for_nothing_is_taken(server: Live) -> None:
    fields = {
        "thinking": {"type": "disabled"}, "tools": [], "metadata": {"user_id": "u"}, "service_tier": "standard_only",
        "mcp_servers": [],
    }  # fmt: skip
    answer = server.post(PATH, {"messages": HELLO, "max_tokens": 9, **fields}).json()
    assert "openautoglm" not in answer
    told = server.post(PATH, {"messages": HELLO, "max_tokens": 9, "unheard_of": 1}).json()["openautoglm"]
    assert "unheard_of" in told["notices"][0]["message"]


def test_errors_have_the_types_that_the_client_raises(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(server)
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        client.messages.create(model="other", max_tokens=1, messages=HELLO)
    server.engine.refuse = overloaded()
    response = server.post(PATH, {"messages": HELLO, "max_tokens": 9})
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(response.headers["retry-after"]) >= 1


def test_a_failure_in_mid_stream_is_raised(server: Live) -> None:
    server.engine.fail_after_tokens = 2
    events = events_of(server)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "overloaded_error"
    stream = client_of(server).messages.stream(model="small", max_tokens=50, messages=HELLO)
    with pytest.raises(anthropic.APIStatusError, match="out of memory"), stream as opened:
        opened.get_final_message()


def test_the_key_may_come_in_its_own_field(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, access=AccessOptions(api_key="sk-1")) as server:
        assert client_of(server, "sk-1").messages.create(model="small", max_tokens=9, messages=HELLO).content
        with pytest.raises(anthropic.AuthenticationError):
            client_of(server, "sk-2").messages.create(model="small", max_tokens=9, messages=HELLO)
        both = {"X-Api-Key": "sk-1", "Authorization": "Bearer sk-2"}
        assert server.get("/v1/models", headers=both).status_code == 401
        assert server.get("/v1/models", headers={"X-Api-Key": "sk-1"}).status_code == 200
