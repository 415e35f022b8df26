"""Parsers of the ways in which models write tool calls: Hermes and Qwen, Llama 3, GLM-4, GLM-4.5.

A call is told when it is whole: until then it may turn out to be text, of which no character may be lost. Blanks before
a call, and behind the last one, belong to its format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from openautoglm.text.answer_parts import FoundCall, ToolParser
from openautoglm.text.call_scan import (
    Chain,
    JsonObject,
    Literal,
    MarkedValues,
    NameLine,
    Scanner,
    Step,
    decode_json,
    found_call,
    json_call,
)
from openautoglm.text.reasoning import partial_mark
from openautoglm.text.tools import Tool, ToolFormat, writes_plain_text

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"


def make_tool_parser(kind: ToolFormat, tools: Collection[Tool], *, parallel: bool = True) -> ToolParser:
    """Return a parser of one answer; without `parallel` what follows the first call is text."""
    names = frozenset(tool.name for tool in tools)
    most_calls = None if parallel else 1
    if kind is ToolFormat.GLM45:
        schemas = {tool.name: tool.properties for tool in tools}
        return MarkedCalls(
            lambda: MarkedValues(_CLOSE), lambda text: _glm45_call(text[: -len(_CLOSE)], schemas), most_calls
        )
    if kind is ToolFormat.HERMES:
        return MarkedCalls(
            lambda: Chain(JsonObject(), Literal(_CLOSE)),
            lambda text: json_call(text[: -len(_CLOSE)], "arguments"),
            most_calls,
        )
    if kind is ToolFormat.LLAMA3:
        return LeadingCalls(JsonObject, lambda text: _llama3_call(text, names), most_calls, mark=_PYTHON_TAG)
    return LeadingCalls(lambda: Chain(NameLine(names), JsonObject()), _glm4_call, most_calls)


class MarkedCalls:
    """Calls between marks, anywhere in the text."""

    def __init__(
        self, scanner: Callable[[], Scanner], read: Callable[[str], FoundCall | None], most_calls: int | None
    ) -> None:
        self._new_scanner = scanner
        self._read = read
        self._most_calls = most_calls
        self._num_calls = 0
        self._held = ""
        self._scanner: Scanner | None = None
        self._before = ""
        self._body: list[str] = []
        self._behind_call = False
        self.num_malformed = 0

    def push(self, text: str) -> list[str | FoundCall]:
        """Take the next piece."""
        found: list[str | FoundCall] = []
        while text:
            text = self._text(text, found) if self._scanner is None else self._call(text, found)
        return found

    def finish(self) -> list[str | FoundCall]:
        """Return what was held back."""
        found: list[str | FoundCall] = []
        if self._scanner is not None:
            self._give_up(found)
        elif self._held and not (self._behind_call and not self._held.strip()):
            found.append(self._held)
        self._held = ""
        return found

    def _text(self, text: str, found: list[str | FoundCall]) -> str:
        """Let text pass up to a mark; return what stands behind it."""
        text = self._held + text
        begin = text.find(_OPEN)
        end = len(text) - partial_mark(text, _OPEN) if begin < 0 else begin
        keep = len(text[:end].rstrip())
        if keep:
            found.append(text[:keep])
            self._behind_call = False
        if begin < 0:
            self._held = text[keep:]
            return ""
        self._before, self._held, self._body = text[keep:begin] + _OPEN, "", []
        self._scanner = self._new_scanner()
        return text[begin + len(_OPEN) :]

    def _call(self, text: str, found: list[str | FoundCall]) -> str:
        """Follow a call to its end; return what stands behind it."""
        assert self._scanner is not None
        for index, character in enumerate(text):
            step = self._scanner.feed(character)
            if step is Step.MORE:
                continue
            end = index + (step is Step.DONE)
            self._body.append(text[:end])
            call = self._read("".join(self._body)) if step is Step.DONE else None
            if call is None or self._num_calls == self._most_calls:
                self._give_up(found)
            else:
                found.append(call)
                self._num_calls += 1
                self._scanner, self._behind_call = None, True
            return text[end:]
        self._body.append(text)
        return ""

    def _give_up(self, found: list[str | FoundCall]) -> None:
        found.append(self._before + "".join(self._body))
        self.num_malformed += 1
        self._scanner, self._behind_call = None, False


class LeadingCalls:
    """Calls that are the whole answer, one behind the other; what follows the last one is text.

    They have no marks (but may have `mark` before them), so that an answer which does not begin as a call is text from
    its first character on, without a notice.
    """

    _BETWEEN = " \t\r\n;,"

    def __init__(
        self,
        scanner: Callable[[], Scanner],
        read: Callable[[str], FoundCall | None],
        most_calls: int | None,
        *,
        mark: str = "",
    ) -> None:
        self._new_scanner = scanner
        self._read = read
        self._most_calls = most_calls
        self._mark = mark
        self._num_calls = 0
        self._scanner: Scanner | None = None
        self._held: list[str] = []
        self._in_text = False
        self.num_malformed = 0

    def push(self, text: str) -> list[str | FoundCall]:
        """Take the next piece."""
        if self._in_text:
            return [text]
        found: list[str | FoundCall] = []
        for index, character in enumerate(text):
            if not self._feed(character, found):
                self._in_text = True
                if index + 1 < len(text):
                    found.append(text[index + 1 :])
                break
        return found

    def finish(self) -> list[str | FoundCall]:
        """Return what was held back."""
        held = "".join(self._held)
        self._held = []
        if self._scanner is not None:
            self.num_malformed += self._began(held)
        elif self._num_calls and not held.strip(self._BETWEEN):
            return []
        return [held] if held else []

    def _feed(self, character: str, found: list[str | FoundCall]) -> bool:
        """Take a character; return whether there may be a call still."""
        self._held.append(character)
        if self._scanner is None:
            if character in (self._BETWEEN if self._num_calls else ""):
                return True
            if self._mark and self._in_mark():
                return True
            self._scanner = self._new_scanner()
        step = self._scanner.feed(character)
        if step is Step.MORE:
            return True
        held = "".join(self._held)
        call = None
        if step is Step.DONE and self._num_calls != self._most_calls:
            call = self._read(held.lstrip(self._BETWEEN).removeprefix(self._mark))
        if call is None:
            self.num_malformed += self._began(held)
            found.append(held)
        else:
            found.append(call)
            self._num_calls += 1
        self._held, self._scanner = [], None
        return call is not None

    def _in_mark(self) -> bool:
        """Whether what is held is the mark, or the beginning of it."""
        held = "".join(self._held).lstrip(self._BETWEEN)
        return self._mark.startswith(held)

    def _began(self, held: str) -> bool:
        """Whether text that is no call looked like one beyond doubt: a bare object may be an answer."""
        if self._mark and self._mark in held:
            return True
        return "{" in held and (
            not self._mark or bool(self._num_calls) or ('"name"' in held and '"parameters"' in held)
        )


def _llama3_call(text: str, names: Collection[str]) -> FoundCall | None:
    # A bare object may be an answer in JSON: it is a call if it names a tool of the request.
    call = json_call(text, "parameters")
    return call if call is not None and call.name in names else None


def _glm4_call(text: str) -> FoundCall | None:
    name, _, arguments = text.partition("\n")
    return found_call(name, decode_json(arguments))


def _glm45_call(body: str, schemas: Mapping[str, Mapping[str, object]]) -> FoundCall | None:
    begin = body.find("<arg_key>")
    name = (body if begin < 0 else body[:begin]).strip()
    rest = "" if begin < 0 else body[begin:]
    properties = schemas.get(name, {})
    arguments: dict[str, object] = {}
    at = 0
    while at < len(rest):
        match = _ARGUMENT.match(rest, at)
        if match is None:
            return None
        key, value = match[1].strip(), match[2]
        arguments[key] = value if writes_plain_text(properties.get(key)) else _json_or_text(value)
        at = match.end()
    return found_call(name, arguments)


def _json_or_text(value: str) -> object:
    decoded = decode_json(value)
    return value if decoded is None and value.strip() != "null" else decoded
