"""Scanners that tell, character by character, where a call ends: constant work for each, so the cut plays no part."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, NoReturn, Protocol

from openautoglm.text.answer_parts import FoundCall

TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_BLANK = " \t\r\n"
# Deeper arguments than any request may have are no call either.
_MAX_DEPTH = 64


class Step(Enum):
    """What a character did: more must come, it ended the span, or the span is broken before it."""

    MORE = "more"
    DONE = "done"
    BROKEN = "broken"


class Scanner(Protocol):
    """Follows one span."""

    def feed(self, character: str) -> Step:
        """Take the next character."""
        ...


class JsonObject:
    """A JSON object and what may stand before it: whether it is valid within its braces is for the decoder to say."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, character: str) -> Step:
        """Take the next character."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
            return Step.MORE
        if self._depth == 0:
            self._depth = int(character == "{")
            return Step.MORE if self._depth or character in _BLANK else Step.BROKEN
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return Step.MORE if self._depth else Step.DONE
        return Step.MORE if self._depth <= _MAX_DEPTH else Step.BROKEN


class Literal:
    """Exactly this text, with blanks before it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def feed(self, character: str) -> Step:
        """Take the next character."""
        if self._at == 0 and character in _BLANK:
            return Step.MORE
        if character != self._text[self._at]:
            return Step.BROKEN
        self._at += 1
        return Step.DONE if self._at == len(self._text) else Step.MORE


class Chain:
    """One scanner after the other."""

    def __init__(self, *scanners: Scanner) -> None:
        self._scanners = list(scanners)

    def feed(self, character: str) -> Step:
        """Take the next character."""
        step = self._scanners[0].feed(character)
        if step is Step.DONE and len(self._scanners) > 1:
            self._scanners.pop(0)
            return Step.MORE
        return step


class NameLine:
    """One of these names, alone on its line."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._seen = ""

    def feed(self, character: str) -> Step:
        """Take the next character."""
        if character == "\n":
            return Step.DONE if self._seen in self._names else Step.BROKEN
        self._seen += character
        return Step.MORE if any(name.startswith(self._seen) for name in self._names) else Step.BROKEN


class MarkedValues:
    """Text up to `closing`, which does not count inside `<arg_value>…</arg_value>`."""

    _VALUE, _VALUE_END = "<arg_value>", "</arg_value>"

    def __init__(self, closing: str) -> None:
        self._closing = closing
        self._tail = ""
        self._in_value = False
        self._longest = max(len(closing), len(self._VALUE_END))

    def feed(self, character: str) -> Step:
        """Take the next character."""
        self._tail = (self._tail + character)[-self._longest :]
        if self._in_value:
            self._in_value = not self._tail.endswith(self._VALUE_END)
        elif self._tail.endswith(self._closing):
            return Step.DONE
        else:
            self._in_value = self._tail.endswith(self._VALUE)
        return Step.MORE


def json_call(text: str, arguments_key: str) -> FoundCall | None:
    """Return the call that a JSON object with `name` and arguments is, None if it is none."""
    value = decode_json(text)
    if not isinstance(value, Mapping):
        return None
    arguments = value.get(arguments_key, value.get("arguments", {}))
    if isinstance(arguments, str):
        # Some models write the arguments as OpenAI's API returns them.
        arguments = decode_json(arguments)
    return found_call(value.get("name"), arguments)


def found_call(name: object, arguments: object) -> FoundCall | None:
    """Return a call with its arguments as JSON; None for a name or arguments that no call can have."""
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name) or not isinstance(arguments, Mapping):
        return None
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair has no bytes, but an escape.
        written = json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return FoundCall(name=name, arguments=written)


def decode_json(text: str) -> Any:  # noqa: ANN401
    """Return a JSON value, with line ends in strings allowed; None for what is not JSON."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
