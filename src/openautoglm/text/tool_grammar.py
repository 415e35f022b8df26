"""Grammars of calls: what an answer must look like where the request requires one, in the model's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from openautoglm.spec.constraint import Constraint, ConstraintKind
from openautoglm.text.tools import Tool, ToolFormat, writes_plain_text

# More calls at once than that are refused: a weak model would never leave them.
MAX_CALLS = 8
# Blanks as templates write JSON, so that none go on for ever.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_VALUE_END = "</arg_value>"
_THINK = 'reasoning[suffix="</think>"]: /(.|\\n)*/'


def call_constraint(
    kind: ToolFormat, tools: Sequence[Tool], *, parallel: bool, thinks: bool = False, inside: bool = False
) -> Constraint:
    """Return the constraint of an answer that is calls of these tools: one, or up to MAX_CALLS.

    Where the model `thinks` it may reason first, and does so `inside` a prompt that has opened it. GLM-4 and Llama 3
    were not trained on several calls in one answer, and get one.
    """
    rules = _Rules()
    names = [rules.call(kind, tool) for tool in tools]
    rules.add("call", " | ".join(names))
    several = parallel and kind in (ToolFormat.GLM45, ToolFormat.HERMES)
    calls = f'call ("\\n" call){{0,{MAX_CALLS - 1}}}' if several else "call"
    if inside:
        calls = f'reasoning "\\n\\n" {calls}'
    elif thinks:
        calls = f'("\\n"? "<think>" reasoning "\\n\\n")? {calls}'
    text = f"start: {calls}\n{rules.text}" + (f"{_THINK}\n" if thinks or inside else "")
    return Constraint(kind=ConstraintKind.GRAMMAR, text=text, param="tools")


class _Rules:
    """Rules of a grammar in Lark, as llguidance reads it, with names that no tool can choose."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def add(self, name: str, body: str) -> None:
        self._lines.append(f"{name}: {body}")

    def call(self, kind: ToolFormat, tool: Tool) -> str:
        """Add a call of a tool; return the name of its rule."""
        rule = f"call_{len(self._lines)}"
        name = json.dumps(tool.name)
        if kind is ToolFormat.GLM45:
            before, after = f"<tool_call>{tool.name}\n", "</tool_call>"
            self.add(rule, f"{_literal(before)} {self._glm45_arguments(tool)} {_literal(after)}")
            return rule
        before, after = {
            ToolFormat.HERMES: (f'<tool_call>\n{{"name": {name}, "arguments": ', "}\n</tool_call>"),
            ToolFormat.LLAMA3: (f'{{"name": {name}, "parameters": ', "}"),
            ToolFormat.GLM4: (f"{tool.name}\n", ""),
        }[kind]
        body = f"{_literal(before)} {self._json({'type': 'object', **tool.parameters})}"
        self.add(rule, f"{body} {_literal(after)}" if after else body)
        return rule

    def _json(self, schema: Mapping[str, object]) -> str:
        rule = f"json_{len(self._lines)}"
        self.add(rule, f"%json {json.dumps({**schema, 'x-guidance': _JSON_STYLE}, ensure_ascii=False)}")
        return rule

    def _glm45_arguments(self, tool: Tool) -> str:
        required = tool.parameters.get("required")
        needed = required if isinstance(required, list) else []
        shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        pieces = []
        for name, schema in tool.properties.items():
            before = _literal(f"<arg_key>{name}</arg_key>\n<arg_value>")
            argument = f'{before} {self._glm45_value(schema, shared)} "\\n"'
            pieces.append(argument if name in needed else f"({argument})?")
        return " ".join(pieces)

    def _glm45_value(self, schema: object, shared: Mapping[str, object]) -> str:
        """Return a value and the mark behind it."""
        choices = schema.get("enum") if isinstance(schema, Mapping) else None
        if isinstance(schema, Mapping) and writes_plain_text(schema):
            if isinstance(choices, list):
                return "(" + " | ".join(_literal(f"{choice}{_VALUE_END}") for choice in choices) + ")"
            rule = f"text_{len(self._lines)}"
            self._lines.append(f'{rule}[suffix="{_VALUE_END}"]: /(.|\\n)*/')
            return rule
        value = self._json({**shared, **schema} if isinstance(schema, Mapping) else {})
        return f"{value} {_literal(_VALUE_END)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
