"""Tool calls and reasoning over HTTP, with the openai package as the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from openautoglm.serve.answer_options import AnswerOptions
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, events_of, live_server

# The small engine answers "0:" and what it was asked: the words of the request are those of the model.
TEMPLATE = (
    "{%- for message in messages -%}{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments.city }}]"
    "{%- endfor %}"
    "{%- endfor -%}{%- if tools and shows is defined %}{{ tools | tojson }}<tool_call>{% endif -%}"
    "{%- if enable_thinking is defined and enable_thinking %}<think>\n{% endif -%}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'
ARGUMENTS = {"city": "北京"}


@pytest.fixture(scope="module")
def module_server(tokenizer: Tokenizer) -> Iterator[Live]:
    template = ChatTemplate({"default": TEMPLATE})
    with live_server(
        tokenizer, template=template, answers=AnswerOptions(splits_reasoning=True), context_tokens=1024
    ) as live:
        yield live


def ask(server: Live, text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": "small", "messages": messages, "tools": [WEATHER], **fields}
    return server.client().chat.completions.create(**body)


def test_a_whole_answer_has_its_calls(server: Live) -> None:
    choice = ask(server, f"Let me look.\n{CALL}\n{CALL}").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "0:Let me look."
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"] * 2
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [ARGUMENTS] * 2
    ids = [call.id for call in choice.message.tool_calls]
    assert all(one.startswith("call_") for one in ids)
    assert len(set(ids)) == 2


def test_a_stream_brings_the_same(server: Live) -> None:
    messages: Any = [{"role": "user", "content": f"Let me look.\n{CALL}\n{CALL}"}]
    client = server.client()
    with client.chat.completions.stream(model="small", messages=messages, tools=[WEATHER], n=2) as stream:  # type: ignore[list-item]
        events = list(stream)
        final = stream.get_final_completion()
    for index, choice in enumerate(final.choices):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == f"{index}:Let me look."
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [ARGUMENTS] * 2
    assert sum(event.type == "tool_calls.function.arguments.done" for event in events) >= 2


def test_chunks_of_a_call(server: Live) -> None:
    body = {"messages": [{"role": "user", "content": CALL}], "tools": [WEATHER], "stream": True}
    chunks = [json.loads(event) for event in events_of(server.post("/v1/chat/completions", body).text)[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["index"] == 0
    assert call["type"] == "function"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


def test_nothing_is_read_where_no_call_was_offered(server: Live) -> None:
    for fields in ({"tool_choice": "none"}, {"tools": []}):
        choice = ask(server, CALL, **fields).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", f"0:{CALL}")
        assert choice.message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_went_wrong_is_content_with_a_notice(server: Live, stream: bool) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city"}}\n</tool_call> sorry'
    body = {"messages": [{"role": "user", "content": text}], "tools": [WEATHER], "stream": stream}
    answer = server.post("/v1/chat/completions", body)
    if stream:
        chunks = [json.loads(event) for event in events_of(answer.text)[:-1]]
        content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        told = chunks[-1]
        reason = told["choices"][0]["finish_reason"]
    else:
        told = answer.json()
        content, reason = told["choices"][0]["message"]["content"], told["choices"][0]["finish_reason"]
    assert (content, reason) == (f"0:{text}", "stop")
    assert [notice["code"] for notice in told["openautoglm"]["notices"]] == ["tool_call_as_text"]


def test_a_call_that_is_cut_is_content(server: Live) -> None:
    whole = ask(server, f"{CALL} and more")
    cut = ask(server, CALL, max_tokens=whole.usage.completion_tokens - 12).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.tool_calls is None
    assert f"0:{CALL}".startswith(cut.message.content)


def test_one_call_only(server: Live) -> None:
    choice = ask(server, f"{CALL}{CALL}", parallel_tool_calls=False).choices[0]
    assert len(choice.message.tool_calls) == 1
    assert choice.message.content == f"0:{CALL}"


def test_the_template_gets_tools_and_earlier_calls(server: Live) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "c"},
    ]
    body = {"messages": messages, "tools": [WEATHER], "chat_template_kwargs": {"shows": True}}
    content = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert content == f"0:ab[get_weather Rome]c{json.dumps([WEATHER])}<tool_call>"


def test_required_calls_become_a_constraint_in_the_models_format(server: Live) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    ask(server, CALL, tools=[WEATHER, other], tool_choice="required")
    ask(server, CALL, tools=[WEATHER, other], tool_choice={"type": "function", "function": {"name": "other"}})
    both, named = (request.sampling.constraint for request in server.engine.requests)
    assert both is not None
    assert named is not None
    assert all(word in both.text for word in ("get_weather", "other", "<tool_call>"))
    assert "get_weather" not in named.text
    assert "other" in named.text


def allowed(mode: object, *names: str) -> dict[str, object]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_tools_that_are_allowed_may_be_called_and_no_others(server: Live) -> None:
    other = {"type": "function", "function": {"name": "other", "description": "", "parameters": {"type": "object"}}}
    fields: dict[str, Any] = {"tools": [WEATHER, other], "extra_body": {"chat_template_kwargs": {"shows": True}}}
    free = ask(server, "a", tool_choice=allowed("auto", "other"), **fields).choices[0].message.content
    assert "get_weather" not in free
    assert "other" in free
    held = ask(server, "a", tool_choice=allowed("required", "other"), **fields).choices[0].message.content
    assert "get_weather" in held
    constraint = server.engine.requests[-1].sampling.constraint
    assert constraint is not None
    assert "get_weather" not in constraint.text
    assert "other" in constraint.text
    both = ask(server, CALL, tool_choice=allowed("auto", "other", "get_weather"), tools=[WEATHER, other]).choices[0]
    assert both.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "choice",
    [
        allowed("auto", "nobody"),
        allowed("auto"),
        allowed("none", "get_weather"),
        allowed(None, "get_weather"),
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "get_weather"}]}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": "get_weather"}},
        {"type": "allowed_tools", "allowed_tools": ["get_weather"]},
        {"type": "allowed_tools"},
        "get_weather",
        {"type": "function", "function": "get_weather"},
    ],
)
def test_choices_that_cannot_be_are_refused(server: Live, choice: object) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [WEATHER], "tool_choice": choice}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice"


def test_strict_tools_and_others_are_told_of(server: Live) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [strict, {"type": "web_search"}]}
    notices = server.post("/v1/chat/completions", body).json()["openautoglm"]["notices"]
    assert [notice["code"] for notice in notices] == ["fields_ignored", "tools_not_strict"]


def test_a_template_without_tools_gets_them_as_text(tokenizer: Tokenizer) -> None:
    plain = ChatTemplate({"default": "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"})
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "b"},
        {"role": "tool", "tool_call_id": "call_2", "content": "c"},
    ]
    with live_server(tokenizer, template=plain, context_tokens=2048) as server:
        answer = server.post("/v1/chat/completions", {"messages": messages, "tools": [WEATHER]}).json()
        prompt = tokenizer.decode(server.engine.requests[-1].prompt_tokens)
        assert prompt.startswith("system=# Tools")
        assert json.dumps(WEATHER) in prompt
        assert prompt.endswith(
            'user=a;assistant=<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>;'
            "user=<tool_response>\nb\n</tool_response>\n<tool_response>\nc\n</tool_response>;"
        )
        assert "tools_as_text" in [notice["code"] for notice in answer["openautoglm"]["notices"]]


def test_reasoning_stands_apart_and_is_counted(server: Live) -> None:
    answer = ask(server, "Why?\n</think>\n\nSo.", tools=[], extra_body={"enable_thinking": True})
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content, message.reasoning) == ("So.<think>\n", "0:Why?", "0:Why?")
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    chunks = ask(server, f"Why?</think>{CALL}", stream=True, extra_body=thinks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "0:Why?"
    assert [call.function.name for delta in deltas for call in delta.tool_calls or []] == ["get_weather"]
    assert "".join(delta.content or "" for delta in deltas) == "<think>\n"


def test_effort_none_turns_thinking_off(server: Live) -> None:
    message = ask(server, "So.", tools=[], reasoning_effort="none").choices[0].message
    assert message.content == "0:So."
    assert not hasattr(message, "reasoning_content")


def test_tokens_of_a_conversation_with_tools_can_be_counted(server: Live) -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}], "tools": [WEATHER], "chat_template_kwargs": {"shows": True},
    }  # fmt: skip
    usage = server.post("/v1/chat/completions", body).json()["usage"]
    assert server.post("/tokenize", body).json()["count"] == usage["prompt_tokens"]
