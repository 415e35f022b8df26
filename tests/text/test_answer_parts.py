"""Parts of answers: recorded texts of each format, and the same parts for every way to cut a text into pieces."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openautoglm.text.answer_parts import AnswerParser, AnswerPart, ContentPart, ReasoningPart, ToolCallPart
from openautoglm.text.reasoning import ThinkSplitter, opens_reasoning
from openautoglm.text.tool_parsers import make_tool_parser
from openautoglm.text.tools import Tool, ToolFormat

TOOLS = (
    Tool(
        name="get_weather",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
        },
    ),
    Tool(name="search", parameters={"type": "object", "properties": {"query": {"type": "string"}}}),
)
CALL = {"city": "北京", "days": 3}
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京", "days": 3}}\n</tool_call>'
GLM45 = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
LLAMA3 = '{"name": "get_weather", "parameters": {"city": "北京", "days": 3}}'
GLM4 = 'get_weather\n{"city": "北京", "days": 3}'


def parser(
    kind: ToolFormat | None, *, parallel: bool = True, think: bool = False, inside: bool = False
) -> AnswerParser:
    numbers = count()
    return AnswerParser(
        reasoning=ThinkSplitter(inside=inside) if think else None,
        tools=None if kind is None else make_tool_parser(kind, TOOLS, parallel=parallel),
        new_id=lambda: f"call_{next(numbers)}",
    )


def joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Join neighbours of a kind, as clients do."""
    result: list[AnswerPart] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, ContentPart) and isinstance(last, ContentPart):
            result[-1] = ContentPart(text=last.text + part.text)
        elif isinstance(part, ReasoningPart) and isinstance(last, ReasoningPart):
            result[-1] = ReasoningPart(text=last.text + part.text)
        else:
            result.append(part)
    return result


def parts_of(parser: AnswerParser, pieces: list[str]) -> tuple[list[AnswerPart], int]:
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    assert all(not isinstance(part, ContentPart | ReasoningPart) or part.text for part in parts)
    return joined(parts), parser.num_malformed


def shown(kind: ToolFormat | None, text: str, **options: bool) -> list[str | tuple[str, object]]:
    """Return content as text, reasoning as ("", text) and calls as (name, arguments)."""
    parts, _ = parts_of(parser(kind, **options), [text])
    return [
        part.text
        if isinstance(part, ContentPart)
        else ("", part.text)
        if isinstance(part, ReasoningPart)
        else (part.name, json.loads(part.arguments))
        for part in parts
    ]


RECORDED = [
    (ToolFormat.HERMES, HERMES, [("get_weather", CALL)]),
    (ToolFormat.HERMES, f"Let me look.\n\n{HERMES}\n{HERMES}\n", ["Let me look.", *[("get_weather", CALL)] * 2]),
    (ToolFormat.HERMES, f"{HERMES} done.", [("get_weather", CALL), " done."]),
    # The mark in a string is text.
    (
        ToolFormat.HERMES,
        '<tool_call>{"name": "search", "arguments": {"query": "</tool_call> \\"}"}}</tool_call>',
        [("search", {"query": '</tool_call> "}'})],
    ),
    (ToolFormat.HERMES, '<tool_call>{"name": "none"}</tool_call>', [("none", {})]),
    (ToolFormat.GLM45, f"\n{GLM45}\n{GLM45}", [("get_weather", CALL)] * 2),
    (ToolFormat.GLM45, GLM45.replace("\n", ""), [("get_weather", CALL)]),
    (ToolFormat.GLM45, "<tool_call>search</tool_call>", [("search", {})]),
    # Text stays as it is by its schema, also where it looks like JSON; what has no schema is JSON, or else text.
    (
        ToolFormat.GLM45,
        "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value> 12 </tool_call>\n</arg_value>\n"
        "<arg_key>more</arg_key>\n<arg_value>[1, null]</arg_value>\n<arg_key>other</arg_key>\n<arg_value>so</arg_value>"
        "</tool_call>",
        [("search", {"query": " 12 </tool_call>\n", "more": [1, None], "other": "so"})],
    ),
    (ToolFormat.LLAMA3, LLAMA3, [("get_weather", CALL)]),
    (ToolFormat.LLAMA3, f"<|python_tag|>{LLAMA3}; {LLAMA3}", [("get_weather", CALL)] * 2),
    (ToolFormat.LLAMA3, f"{LLAMA3}\nand so on", [("get_weather", CALL), "\nand so on"]),
    (ToolFormat.GLM4, GLM4, [("get_weather", CALL)]),
    (ToolFormat.GLM4, f"{GLM4}\nsearch\n{{}}", [("get_weather", CALL), ("search", {})]),
]
NESTED = '<tool_call>{"name": "search", "arguments": {"query": ' + "[" * 70 + "]" * 70 + "}}</tool_call>"
# Text that is no call, whether it counts as one that went wrong.
TEXTS = [
    (ToolFormat.HERMES, "no call < tool_call>", 0),
    (ToolFormat.HERMES, "  <tool_call>nothing</tool_call> ", 1),
    (ToolFormat.HERMES, '<tool_call>{"name": "a b", "arguments": {}}</tool_call>', 1),
    (ToolFormat.HERMES, '<tool_call>{"name": "search", "arguments": 3}</tool_call>', 1),
    (ToolFormat.HERMES, '<tool_call>{"name": "search", "arguments": {"a": NaN}}</tool_call>', 1),
    (ToolFormat.HERMES, '<tool_call>{"name": "search", "arguments": {"a": 1e999}}</tool_call>', 1),
    (ToolFormat.HERMES, HERMES[:-3], 1),
    (ToolFormat.HERMES, "<tool_call>" * 3, 3),
    (ToolFormat.HERMES, NESTED, 1),
    (ToolFormat.GLM45, "<tool_call>get weather</tool_call>", 1),
    (ToolFormat.GLM45, "<tool_call>search<arg_key>query</arg_key></tool_call>", 1),
    (ToolFormat.GLM45, GLM45[:-1], 1),
    (ToolFormat.LLAMA3, '{"name": "Bob", "age": 3}', 0),
    (ToolFormat.LLAMA3, '{"name": "delete_all", "parameters": {}}', 1),
    (ToolFormat.LLAMA3, '<|python_tag|>print("{}")', 1),
    (ToolFormat.LLAMA3, "Hello {", 0),
    (ToolFormat.LLAMA3, LLAMA3[:-1], 1),
    (ToolFormat.GLM4, "\nget_weather is what I would call", 0),
    (ToolFormat.GLM4, "get_weather\nfirst", 0),
    (ToolFormat.GLM4, 'get_weather\n{"city": }', 1),
]


@pytest.mark.parametrize(("kind", "text", "expected"), RECORDED)
def test_reads_calls_as_models_write_them(kind: ToolFormat, text: str, expected: list[object]) -> None:
    assert shown(kind, text) == expected


@pytest.mark.parametrize(("kind", "text", "num_malformed"), TEXTS)
def test_what_is_no_call_comes_out_to_the_letter(kind: ToolFormat, text: str, num_malformed: int) -> None:
    assert parts_of(parser(kind), [text]) == ([ContentPart(text=text)], num_malformed)


@pytest.mark.parametrize(
    ("kind", "text"), [*((kind, text) for kind, text, _ in RECORDED), *((kind, text) for kind, text, _ in TEXTS)]
)
def test_every_cut_in_two_and_each_character_alone_give_the_same(kind: ToolFormat, text: str) -> None:
    whole = parts_of(parser(kind), [text])
    assert parts_of(parser(kind), list(text)) == whole
    for cut in range(len(text)):
        assert parts_of(parser(kind), [text[:cut], text[cut:]]) == whole


FRAGMENTS = st.sampled_from(
    [
        *(HERMES, GLM45, LLAMA3, GLM4, "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>"),
        *(
            "</arg_value>",
            "<|python_tag|>",
            "get_weather",
            "search",
            "\n",
            " ",
            "{",
            "}",
            '"',
            "\\",
            "[",
            "]",
            "; ",
            "<",
        ),
        *("<think>", "</think>", "x", "好", '"name"', "<thi", "</tool", ",", "\ud83d"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(FRAGMENTS, max_size=10).map("".join),
    kind=st.sampled_from([None, *ToolFormat]),
    parallel=st.booleans(),
    think=st.booleans(),
    inside=st.booleans(),
    data=st.data(),
)
@example(text="a\n\n<think>", kind=None, parallel=True, think=True, inside=True, data=None)
def test_any_text_in_any_pieces_gives_the_same_parts(
    text: str, kind: ToolFormat | None, parallel: bool, think: bool, inside: bool, data: st.DataObject | None
) -> None:
    whole = parts_of(parser(kind, parallel=parallel, think=think, inside=inside), [text])
    assert parts_of(parser(kind, parallel=parallel, think=think, inside=inside), list(text)) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parts_of(parser(kind, parallel=parallel, think=think, inside=inside), pieces) == whole
    parts, _ = whole
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert parallel or len(calls) <= 1
    if not calls and not think:
        assert "".join(part.text for part in parts if isinstance(part, ContentPart)) == text


def test_one_call_only_leaves_the_others_as_text() -> None:
    assert shown(ToolFormat.HERMES, f"{HERMES}\n{HERMES}", parallel=False) == [("get_weather", CALL), f"\n{HERMES}"]
    assert shown(ToolFormat.LLAMA3, f"{LLAMA3};{LLAMA3}", parallel=False) == [("get_weather", CALL), f";{LLAMA3}"]


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nWhy?\n\n</think>\n\nSo.\n", False, [("", "Why?"), "So.\n"]),
        ("\n<think></think>\nSo.", False, ["So."]),
        ("\n\nWhy?\nHow?</think>So. <think>", True, [("", "Why?\nHow?"), "So. <think>"]),
        ("<think>never ends\n</thin", False, [("", "never ends\n</thin")]),
        ("So. <think>no</think>", False, ["So. <think>no</think>"]),
        (" <thi", False, [" <thi"]),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, inside: bool, expected: list[object]) -> None:
    assert shown(None, text, think=True, inside=inside) == expected
    whole = parts_of(parser(None, think=True, inside=inside), [text])
    for cut in range(len(text)):
        assert parts_of(parser(None, think=True, inside=inside), [text[:cut], text[cut:]]) == whole
    assert shown(None, text) == [text]


def test_calls_behind_reasoning_are_read_and_those_within_are_not() -> None:
    text = f"<think>{HERMES}</think>\n\n{HERMES}"
    assert shown(ToolFormat.HERMES, text, think=True) == [("", HERMES), ("get_weather", CALL)]


def test_tells_while_it_reasons() -> None:
    answer = parser(None, think=True)
    reasons = []
    for piece in ("", "<think>a", "b</thi", "nk>c", "d"):
        answer.push(piece)
        reasons.append(answer.reasons)
    assert reasons == [False, True, True, False, False]


def test_prompts_may_open_the_reasoning() -> None:
    assert opens_reasoning("<|assistant|>\n<think>\n")
    assert not opens_reasoning("<|assistant|>\n<think></think>\n")


def test_half_a_surrogate_pair_in_arguments_is_escaped() -> None:
    text = '<tool_call>{"name": "search", "arguments": {"query": "\\ud83d"}}</tool_call>'
    (call,), _ = parts_of(parser(ToolFormat.HERMES), [text])
    assert isinstance(call, ToolCallPart)
    assert call.arguments == '{"query": "\\ud83d"}'


def test_content_is_not_held_longer_than_it_may_be_a_mark() -> None:
    answer = parser(ToolFormat.HERMES)
    assert answer.push("Hello <tool") == [ContentPart(text="Hello")]
    assert answer.push("box") == [ContentPart(text=" <toolbox")]
