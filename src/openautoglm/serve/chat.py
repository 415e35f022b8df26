"""POST /v1/chat/completions: the answer whole, or as a stream of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Choices
from openautoglm.serve.collect import CollectedList, CollectedText
from openautoglm.serve.context import ServeContext
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.logprobs import chat_logprob_entries, chat_logprobs


@dataclass(slots=True)
class _Message:
    text: CollectedText = field(default_factory=CollectedText)
    logprobs: CollectedList = field(default_factory=CollectedList)
    last: GenerationEvent | None = None


class ChatChoices(Choices):
    """Chat choices: deltas of a stream, or whole messages."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, context: ServeContext, *, num_choices: int, logprobs: bool) -> None:
        self._tokenizer = context.tokenizer
        self._num_choices = num_choices
        self._logprobs = logprobs
        self._messages = [_Message() for _ in range(num_choices)]

    def opening(self) -> list[dict[str, object]]:
        """Return the first delta of each choice, the only one with a role."""
        return [
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for index in range(self._num_choices)
        ]

    def delta(self, prompt: int, event: GenerationEvent) -> dict[str, object] | None:
        """Return the delta of an event, None if it brings nothing for the client."""
        # A token that only began a character or a possible stop string still carries its logprob.
        logprobs = chat_logprobs(self._tokenizer, event.logprobs) if self._logprobs and event.logprobs else None
        if not event.text and event.finish_reason is None and logprobs is None:
            return None
        choice: dict[str, object] = {
            "index": event.choice,
            "delta": {"content": event.text} if event.text or event.finish_reason is None else {},
            "logprobs": logprobs,
            "finish_reason": event.finish_reason,
        }
        if event.finish_reason is not None:
            choice["stop_reason"] = event.stop_reason
        return choice

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer."""
        message = self._messages[event.choice]
        message.text.add(event.text, charge)
        if self._logprobs:
            message.logprobs.add(chat_logprob_entries(self._tokenizer, event.logprobs), charge)
        message.last = event

    def whole(self) -> list[dict[str, object]]:
        """Return the finished choices."""
        return [self._choice(index, message) for index, message in enumerate(self._messages)]

    def _choice(self, index: int, message: _Message) -> dict[str, object]:
        assert message.last is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": message.text.text(), "refusal": None},
            "logprobs": {"content": message.logprobs.raw(), "refusal": None} if self._logprobs else None,
            "finish_reason": message.last.finish_reason,
            "stop_reason": message.last.stop_reason,
        }
