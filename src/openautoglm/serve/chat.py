"""POST /v1/chat/completions: the answer whole, or as a stream of chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Choices
from openautoglm.serve.collect import CollectedList, CollectedText
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.logprobs import chat_logprob_entries, chat_logprobs
from openautoglm.spec.notices import NoticeCode
from openautoglm.text.answer_parts import AnswerParser, AnswerPart, ContentPart, ReasoningPart, ToolCallPart


@dataclass(slots=True)
class _Message:
    text: CollectedText = field(default_factory=CollectedText)
    reasoning: CollectedText = field(default_factory=CollectedText)
    calls: CollectedList = field(default_factory=CollectedList)
    logprobs: CollectedList = field(default_factory=CollectedList)
    last: GenerationEvent | None = None


class ChatChoices(Choices):
    """Chat choices: deltas of a stream, or whole messages, taken apart by a parser for each choice.

    The generation is told of tokens that were reasoning.
    """

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self, context: ServeContext, parsers: Sequence[AnswerParser], extension: Extension, *, logprobs: bool
    ) -> None:
        self._tokenizer = context.tokenizer
        self._parsers = parsers
        self._extension = extension
        self._logprobs = logprobs
        self._messages = [_Message() for _ in parsers]
        self._generation: Generation | None = None
        self._told = [0.0] * len(parsers)

    def begin(self, generation: Generation) -> None:
        """Know where its events come from."""
        self._generation = generation

    def opening(self) -> list[dict[str, object]]:
        """Return the first delta of each choice, the only one with a role."""
        return [
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for index in range(len(self._parsers))
        ]

    def delta(self, prompt: int, event: GenerationEvent) -> dict[str, object] | None:
        """Return the delta of an event, None if it brings nothing for the client."""
        # A token that only began a character, a mark or a possible stop string still carries its logprob.
        logprobs = chat_logprobs(self._tokenizer, event.logprobs) if self._logprobs and event.logprobs else None
        delta = _delta(self._parts(event))
        if not delta and event.finish_reason is None:
            if logprobs is None:
                return None
            delta = {"content": ""}
        choice: dict[str, object] = {
            "index": event.choice,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(event),
        }
        if event.finish_reason is not None:
            choice["stop_reason"] = event.stop_reason
        return choice

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer."""
        message = self._messages[event.choice]
        for part in self._parts(event):
            if isinstance(part, ContentPart):
                message.text.add(part.text, charge)
            elif isinstance(part, ReasoningPart):
                message.reasoning.add(part.text, charge)
            else:
                message.calls.add([_call(part)], charge)
        if self._logprobs:
            message.logprobs.add(chat_logprob_entries(self._tokenizer, event.logprobs), charge)
        message.last = event

    def whole(self) -> list[dict[str, object]]:
        """Return the finished choices."""
        return [self._choice(index, message) for index, message in enumerate(self._messages)]

    def _parts(self, event: GenerationEvent) -> list[AnswerPart]:
        """Return the parts that an event brings; count reasoning, and tell of calls that went wrong."""
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

    def _note_calls(self, choice: int, parts: Sequence[AnswerPart]) -> None:
        """Note when a call was written: since the part before it, as it comes when it is whole."""
        now = time.monotonic()
        if self._generation is not None and any(isinstance(part, ToolCallPart) for part in parts):
            meter = self._generation.meter
            meter.note("tool", self._told[choice] or meter.first or now, now)
        self._told[choice] = now

    def _finish_reason(self, event: GenerationEvent) -> str | None:
        ends_by_call = event.finish_reason == "stop" and self._parsers[event.choice].num_calls > 0
        return "tool_calls" if ends_by_call else event.finish_reason

    def _choice(self, index: int, message: _Message) -> dict[str, object]:
        assert message.last is not None
        text, reasoning = message.text.text(), message.reasoning.text()
        written: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if self._parsers[index].num_calls:
            written |= {"content": text or None, "tool_calls": message.calls.raw()}
        if reasoning:
            written |= {"reasoning": reasoning, "reasoning_content": reasoning}
        return {
            "index": index,
            "message": written,
            "logprobs": {"content": message.logprobs.raw(), "refusal": None} if self._logprobs else None,
            "finish_reason": self._finish_reason(message.last),
            "stop_reason": message.last.stop_reason,
        }


def _delta(parts: Sequence[AnswerPart]) -> dict[str, object]:
    """Return one delta of all parts; a call is whole in it, so that order within plays no part."""
    content = "".join(part.text for part in parts if isinstance(part, ContentPart))
    reasoning = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
    calls = [{"index": part.index, **_call(part)} for part in parts if isinstance(part, ToolCallPart)]
    delta: dict[str, object] = {"content": content} if content else {}
    if reasoning:
        delta |= {"reasoning": reasoning, "reasoning_content": reasoning}
    return delta | {"tool_calls": calls} if calls else delta


def _call(part: ToolCallPart) -> dict[str, object]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
