"""Tools and reasoning in messages and responses, as their packages read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from openautoglm.serve.answer_options import AnswerOptions
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.test_tools import ARGUMENTS, CALL, TEMPLATE, WEATHER

FUNCTION = WEATHER["function"]
ANTHROPIC_TOOL = {
    "name": "get_weather", "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"],
}  # fmt: skip
OPENAI_TOOL = {"type": "function", **FUNCTION}
# The small engine answers with what it was asked.
TEXT = f"<think>hm</think>Let me look.\n{CALL}\n{CALL}"


@pytest.fixture(scope="module")
def module_server(tokenizer: Tokenizer) -> Iterator[Live]:
    template = ChatTemplate({"default": TEMPLATE})
    with live_server(
        tokenizer, template=template, answers=AnswerOptions(splits_reasoning=True), context_tokens=1024
    ) as live:
        yield live


def message_of(server: Live, *, stream: bool, **fields: Any) -> anthropic.types.Message:
    client = server.anthropic_client()
    body: dict[str, Any] = {
        "model": "small", "max_tokens": 500, "messages": [{"role": "user", "content": TEXT}], "tools": [ANTHROPIC_TOOL],
        **fields,
    }  # fmt: skip
    if not stream:
        message: anthropic.types.Message = client.messages.create(**body)
        return message
    with client.messages.stream(**body) as events:
        return events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_has_blocks_of_each_kind(server: Live, stream: bool) -> None:
    message = message_of(server, stream=stream)
    assert message.stop_reason == "tool_use"
    kinds = [block.type for block in message.content]
    assert kinds[-2:] == ["tool_use", "tool_use"]
    text = "".join(block.text for block in message.content if block.type == "text")
    assert "Let me look." in text
    assert "tool_call" not in text
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [(use.name, use.input) for use in uses] == [("get_weather", ARGUMENTS)] * 2
    assert len({use.id for use in uses}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_a_block(server: Live, stream: bool) -> None:
    message = message_of(
        server, stream=stream, thinking={"type": "enabled", "budget_tokens": 1024}, tools=[],
        messages=[{"role": "user", "content": "hm</think>so"}],
    )  # fmt: skip
    thinking, text = message.content[:2]
    assert (thinking.type, text.type) == ("thinking", "text")
    assert "hm" in thinking.thinking  # type: ignore[union-attr]
    assert "so" in text.text  # type: ignore[union-attr]


def test_choices_of_tools_reach_the_engine(server: Live) -> None:
    message_of(server, stream=False, tool_choice={"type": "none"})
    assert server.engine.requests[-1].sampling.constraint is None
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message_of(server, stream=False, tool_choice=choice)
        assert server.engine.requests[-1].sampling.constraint is not None
    single = message_of(server, stream=False, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in single.content].count("tool_use") == 1


def create(server: Live, **fields: Any) -> Any:
    body: dict[str, Any] = {"model": "small", "input": TEXT, "tools": [OPENAI_TOOL], **fields}
    return server.client().responses.create(**body)


def test_a_response_has_items_of_each_kind_whole_and_streamed(server: Live) -> None:
    whole = create(server)
    events = list(create(server, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    streamed = events[-1].response
    for response in (whole, streamed):
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("get_weather", ARGUMENTS)] * 2
        assert "Let me look." in response.output_text
        assert "tool_call" not in response.output_text
        assert len({item.id for item in response.output}) == len(response.output)
    assert [item.type for item in whole.output] == [item.type for item in streamed.output]
    added = [event for event in events if event.type == "response.output_item.added"]
    done = [event for event in events if event.type == "response.output_item.done"]
    assert [event.output_index for event in added] == list(range(len(streamed.output)))
    assert [event.item.to_dict() for event in done] == [item.to_dict() for item in streamed.output]


def test_reasoning_is_an_item(server: Live) -> None:
    fields: dict[str, Any] = {
        "input": "hm</think>so", "tools": [], "extra_body": {"chat_template_kwargs": {"enable_thinking": True}},
    }  # fmt: skip
    whole = create(server, **fields)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert "hm" in whole.output[0].content[0].text
    assert "hm" not in whole.output_text
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    text = "".join(
        event.delta for event in create(server, stream=True, **fields) if event.type == "response.reasoning_text.delta"
    )
    assert text == whole.output[0].content[0].text


def test_a_stored_call_goes_on_with_its_output(server: Live) -> None:
    first = create(server, store=True)
    call = next(item for item in first.output if item.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    create(server, input=[output], previous_response_id=first.id)
    prompt = server.tokenizer.decode(server.engine.requests[-1].prompt_tokens)
    assert "[get_weather 北京]" in prompt
    assert "rain" in prompt
    server.client().responses.delete(first.id)
