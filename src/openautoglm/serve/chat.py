"""POST /v1/chat/completions: the answer whole, or as a stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Choices
from openautoglm.serve.collect import CollectedList, CollectedText
from openautoglm.serve.context import ServeContext
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.logprobs import chat_logprob_entries, chat_logprobs
from openautoglm.serve.parts import Parts
from openautoglm.text.answer_parts import AnswerPart, ContentPart, ReasoningPart, ToolCallPart


@dataclass(slots=True)
class _Message:
    text: CollectedText = field(default_factory=CollectedText)
    reasoning: CollectedText = field(default_factory=CollectedText)
    calls: CollectedList = field(default_factory=CollectedList)
    logprobs: CollectedList = field(default_factory=CollectedList)
    last: GenerationEvent | None = None


class ChatChoices(Choices):
    """Chat choices: deltas of a stream, or whole messages."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, context: ServeContext, parts: Parts, *, logprobs: bool) -> None:
        self._tokenizer = context.tokenizer
        self._parts = parts
        self._logprobs = logprobs
        self._messages = [_Message() for _ in range(parts.num_choices)]

    def opening(self) -> list[dict[str, object]]:
        """Return the first delta of each choice, the only one with a role."""
        return [
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for index in range(self._parts.num_choices)
        ]

    def delta(self, prompt: int, event: GenerationEvent) -> dict[str, object] | None:
        """Return the delta of an event, None if it brings nothing for the client."""
        # A token that only began a character, a mark or a possible stop string still carries its logprob.
        logprobs = chat_logprobs(self._tokenizer, event.logprobs) if self._logprobs and event.logprobs else None
        delta = _delta(self._parts.of(event))
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
        for part in self._parts.of(event):
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

    def _finish_reason(self, event: GenerationEvent) -> str | None:
        ends_by_call = event.finish_reason == "stop" and self._parts.calls(event.choice) > 0
        return "tool_calls" if ends_by_call else event.finish_reason

    def _choice(self, index: int, message: _Message) -> dict[str, object]:
        assert message.last is not None
        text, reasoning = message.text.text(), message.reasoning.text()
        written: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if self._parts.calls(index):
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
