"""Histories with tools as templates take them, and the formats that templates teach."""

from __future__ import annotations

import pytest

from openautoglm.text.tool_messages import adapt_history, tools_as_text
from openautoglm.text.tools import Tool, ToolFormat, format_of_template, writes_plain_text

CALL = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": {"query": "猫"}}}
HISTORY: list[dict[str, object]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "c"},
    {"role": "tool", "tool_call_id": "call_1", "content": "d"},
    {"role": "assistant", "content": "e"},
]
WRITTEN = '<tool_call>\n{"name": "search", "arguments": {"query": "猫"}}\n</tool_call>'


def test_templates_that_know_calls_get_them_as_they_are() -> None:
    assert adapt_history(HISTORY, "{{ message.tool_calls }}") == HISTORY


def test_glm4_gets_metadata_and_observations() -> None:
    call = {"role": "assistant", "metadata": "search", "content": '{"query": "猫"}'}
    assert adapt_history(HISTORY, "{% if role == 'observation' %}") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        call,
        call,
        {"role": "observation", "tool_call_id": "call_1", "content": "c"},
        {"role": "observation", "tool_call_id": "call_1", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]


def test_other_templates_get_text_and_turns_that_alternate() -> None:
    assert adapt_history(HISTORY, "{{ message.content }}") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": f"b\n{WRITTEN}\n{WRITTEN}"},
        {
            "role": "user",
            "content": "<tool_response>\nc\n</tool_response>\n<tool_response>\nd\n</tool_response>",
        },
        {"role": "assistant", "content": "e"},
    ]


def test_a_history_without_tools_stays() -> None:
    plain: list[dict[str, object]] = [{"role": "user", "content": "a", "name": "x"}]
    assert adapt_history(plain, "{{ message.content }}") == plain


def test_tools_join_the_system_message() -> None:
    tool = Tool(name="search", description="Finds").as_openai()
    system: dict[str, object] = {"role": "system", "content": "Be brief."}
    alone = tools_as_text(HISTORY, [tool])
    joined = tools_as_text([system, *HISTORY], [tool])
    assert alone[1:] == joined[1:] == HISTORY
    assert joined[0]["content"] == f"Be brief.\n\n{alone[0]['content']}"
    line = '{"type": "function", "function": {"name": "search", "description": "Finds", "parameters": '
    assert f'{line}{{"type": "object", "properties": {{}}}}}}}}\n</tools>' in str(alone[0]["content"])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<tool_call>{{ name }}<arg_key>", ToolFormat.GLM45),
        ("{% if tools %}<tools>…<tool_call>", ToolFormat.HERMES),
        ("<|start_header_id|>{{ tools }}", ToolFormat.LLAMA3),
        ("# 可用工具{{ tools }}<|observation|>", ToolFormat.GLM4),
        ("{{ messages }}", ToolFormat.HERMES),
    ],
)
def test_templates_tell_the_format(template: str, expected: ToolFormat) -> None:
    assert format_of_template(template) is expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, True),
        ({"enum": ["a", "b"]}, True),
        ({"enum": ["a", 1]}, False),
        ({"type": ["string", "null"]}, False),
        ({}, False),
        (None, False),
    ],
)
def test_which_arguments_are_plain_text(schema: object, expected: bool) -> None:
    assert writes_plain_text(schema) is expected
