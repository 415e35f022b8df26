"""Parts of an answer: content, reasoning and tool calls, taken apart while the text comes.

One representation for every API: chat completions, responses and messages write the same parts in their own words. How
a text is cut into pieces changes nothing: pieces of content join to the same content, calls are the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPart:
    """Text for the user; consecutive ones join."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPart:
    """Text that the model wrote for itself; consecutive ones join."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallPart:
    """A whole call: only then is it known to be one. `index` counts the calls of an answer, `arguments` is JSON."""

    index: int
    id: str
    name: str
    arguments: str


AnswerPart = ContentPart | ReasoningPart | ToolCallPart


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCall:
    """A call as a tool parser finds it."""

    name: str
    arguments: str


class ReasoningSplitter(Protocol):
    """Tells reasoning from the rest of a text; `inside` while what comes is reasoning."""

    inside: bool

    def push(self, text: str) -> list[ReasoningPart | ContentPart]:
        """Take the next piece."""
        ...

    def finish(self) -> list[ReasoningPart | ContentPart]:
        """Return what was held back; the text has ended."""
        ...


class ToolParser(Protocol):
    """Finds calls in content. What is no call after all comes out as text, to the letter, and counts as malformed where
    it had begun as one."""

    num_malformed: int

    def push(self, text: str) -> list[str | FoundCall]:
        """Take the next piece."""
        ...

    def finish(self) -> list[str | FoundCall]:
        """Return what was held back; the text has ended."""
        ...


def new_call_id() -> str:
    """Return an id for a call, which the tool's result will name."""
    return f"call_{uuid4().hex[:24]}"


class AnswerParser:
    """Takes one choice's text apart; without a splitter and a parser everything is content."""

    def __init__(
        self,
        *,
        reasoning: ReasoningSplitter | None = None,
        tools: ToolParser | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._new_id = new_id
        self.num_calls = 0

    @property
    def reasons(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._reasoning is not None and self._reasoning.inside

    @property
    def num_malformed(self) -> int:
        """How often something began like a call and came out as content."""
        return 0 if self._tools is None else self._tools.num_malformed

    def push(self, text: str) -> list[AnswerPart]:
        """Take the next piece of text; return the parts that are certain now."""
        if not text:
            return []
        if self._reasoning is None:
            return self._content([ContentPart(text=text)])
        return self._content(self._reasoning.push(text))

    def finish(self) -> list[AnswerPart]:
        """Return the parts that were held back; the text has ended."""
        parts = self._content([] if self._reasoning is None else self._reasoning.finish())
        return parts if self._tools is None else parts + self._found(self._tools.finish())

    def _content(self, pieces: Sequence[ReasoningPart | ContentPart]) -> list[AnswerPart]:
        if self._tools is None:
            return list(pieces)
        parts: list[AnswerPart] = []
        for piece in pieces:
            parts += [piece] if isinstance(piece, ReasoningPart) else self._found(self._tools.push(piece.text))
        return parts

    def _found(self, found: Sequence[str | FoundCall]) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        for one in found:
            if isinstance(one, FoundCall):
                call = ToolCallPart(index=self.num_calls, id=self._new_id(), name=one.name, arguments=one.arguments)
                self.num_calls += 1
                parts.append(call)
            else:
                parts.append(ContentPart(text=one))
        return parts
