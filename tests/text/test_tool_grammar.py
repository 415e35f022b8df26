"""Grammars of calls: llguidance takes what models write, our parsers read what it takes."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from openautoglm.text.answer_parts import AnswerParser, ToolCallPart
from openautoglm.text.reasoning import ThinkSplitter
from openautoglm.text.tool_grammar import MAX_CALLS, call_constraint
from openautoglm.text.tool_parsers import make_tool_parser
from openautoglm.text.tools import Tool, ToolFormat
from tests.text.test_answer_parts import GLM4, GLM45, HERMES, LLAMA3

TOOLS = (
    Tool(
        name="get_weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"$ref": "#/$defs/days"},
                "unit": {"enum": ["c", "f"]},
            },
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "maximum": 9}},
        },
    ),
    Tool(name="search"),
)
WRITTEN = {ToolFormat.HERMES: HERMES, ToolFormat.GLM45: GLM45, ToolFormat.LLAMA3: LLAMA3, ToolFormat.GLM4: GLM4}
THOUGHT = "Why? < </thi\nso </think>\n\n"


class _Bytes:
    """A vocabulary of all bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<|end|>")
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


def matches(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    matcher = LLMatcher(vocabulary, grammar)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


@pytest.mark.parametrize("kind", ToolFormat)
def test_takes_one_call_or_several_and_nothing_else(vocabulary: LLTokenizer, kind: ToolFormat) -> None:
    text, marked = WRITTEN[kind], kind in (ToolFormat.HERMES, ToolFormat.GLM45)
    one = call_constraint(kind, TOOLS, parallel=False).text
    several = call_constraint(kind, TOOLS, parallel=True).text
    assert matches(vocabulary, one, text)
    assert not matches(vocabulary, one, f"{text}\n{text}")
    assert matches(vocabulary, several, "\n".join([text] * MAX_CALLS)) is marked
    assert not matches(vocabulary, several, "\n".join([text] * (MAX_CALLS + 1)))
    for wrong in ("", f"So. {text}", text.replace("get_weather", "get_wether"), text.replace("3", "30")):
        assert not matches(vocabulary, several, wrong)
    assert not matches(vocabulary, call_constraint(kind, TOOLS[1:], parallel=True).text, text)


@pytest.mark.parametrize("kind", ToolFormat)
def test_reasoning_may_come_first_and_is_read(vocabulary: LLTokenizer, kind: ToolFormat) -> None:
    text = WRITTEN[kind]
    may = call_constraint(kind, TOOLS, parallel=True, thinks=True).text
    must = call_constraint(kind, TOOLS, parallel=True, inside=True).text
    assert matches(vocabulary, may, text)
    assert matches(vocabulary, may, f"<think>{THOUGHT}{text}")
    assert matches(vocabulary, must, f"{THOUGHT}{text}")
    assert not matches(vocabulary, must, text)
    parser = AnswerParser(reasoning=ThinkSplitter(inside=True), tools=make_tool_parser(kind, TOOLS))
    last = [*parser.push(f"{THOUGHT}{text}"), *parser.finish()][-1]
    assert isinstance(last, ToolCallPart)


def test_glm45_writes_text_as_it_is_and_choices_exactly(vocabulary: LLTokenizer) -> None:
    grammar = call_constraint(ToolFormat.GLM45, TOOLS, parallel=False).text

    def call(city: str, unit: str) -> str:
        return (
            f"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n"
            f"<arg_key>unit</arg_key>\n<arg_value>{unit}</arg_value>\n</tool_call>"
        )

    assert matches(vocabulary, grammar, call('a <b> "</c>\n', "c"))
    assert not matches(vocabulary, grammar, call("a", "k"))
    assert not matches(vocabulary, grammar, "<tool_call>get_weather\n</tool_call>")


def test_names_cannot_break_out_of_the_grammar(vocabulary: LLTokenizer) -> None:
    name = 'x" | /.*/ | "\n'
    tool = Tool(name="f", parameters={"type": "object", "properties": {name: {"enum": ['a" | /.*/ | "']}}})
    grammar = call_constraint(ToolFormat.GLM45, [tool], parallel=False).text
    start = f"<tool_call>f\n<arg_key>{name}</arg_key>\n<arg_value>"
    assert matches(vocabulary, grammar, start + 'a" | /.*/ | "</arg_value>\n</tool_call>')
    assert not matches(vocabulary, grammar, start + "b</arg_value>\n</tool_call>")
