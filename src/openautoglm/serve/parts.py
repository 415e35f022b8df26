"""`Parts`: the parts of an answer's choices as its events bring them, for whatever protocol writes them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation
from openautoglm.spec.notices import NoticeCode
from openautoglm.text.answer_parts import AnswerParser, AnswerPart, ToolCallPart


class Parts:
    """Takes events apart with a parser for each choice; counts reasoning, and tells of calls that went wrong."""

    def __init__(self, parsers: Sequence[AnswerParser], extension: Extension) -> None:
        self._parsers = parsers
        self._extension = extension
        self._generation: Generation | None = None
        self._told = [0.0] * len(parsers)

    @property
    def num_choices(self) -> int:
        """How many choices there are."""
        return len(self._parsers)

    def begin(self, generation: Generation) -> None:
        """Know where events come from: it is told of tokens that were reasoning."""
        self._generation = generation

    def of(self, event: GenerationEvent) -> list[AnswerPart]:
        """Return the parts that an event brings."""
        parser = self._parsers[event.choice]
        reasoned = parser.reasons
        parts = parser.push(event.text)
        if parts:
            self._note_calls(event.choice, parts)
        if self._generation is not None and (reasoned or parser.reasons):
            self._generation.usage.reasoned(len(event.tokens))
        if event.finish_reason is not None:
            parts += parser.finish()
            if parser.num_malformed:
                self._extension.add_late(
                    NoticeCode.TOOL_CALL_AS_TEXT,
                    "what began as a tool call is content: it was malformed, cut, or one too many",
                )
        return parts

    def calls(self, choice: int) -> int:
        """Return how many calls there were in a choice."""
        return self._parsers[choice].num_calls

    def _note_calls(self, choice: int, parts: Sequence[AnswerPart]) -> None:
        """Note when a call was written: since the part before it, as it comes when it is whole."""
        now = time.monotonic()
        if self._generation is not None and any(isinstance(part, ToolCallPart) for part in parts):
            meter = self._generation.meter
            meter.note("tool", self._told[choice] or meter.first or now, now)
        self._told[choice] = now
