"""POST /v1/completions: one or several prompts continued, whole or as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from openautoglm.engine.client import GenerationEvent
from openautoglm.serve.answer import Choices
from openautoglm.serve.collect import CollectedText
from openautoglm.serve.context import ServeContext
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.logprobs import CollectedLogprobs, CompletionLogprobs
from openautoglm.serve.prompts import Prompt
from openautoglm.spec.sampling import SamplingParams


@dataclass(slots=True, kw_only=True)
class _Text:
    logprobs: CompletionLogprobs | None
    text: CollectedText = field(default_factory=CollectedText)
    collected: CollectedLogprobs = field(default_factory=CollectedLogprobs)
    last: GenerationEvent | None = None


class CompletionChoices(Choices):
    """Choices of plain completions: those of the first prompt, then those of the next."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(
        self, context: ServeContext, prompts: Sequence[Prompt], sampling: SamplingParams, *, echo: bool
    ) -> None:
        self._num_choices = sampling.n
        self._echoed = [prompt.text for prompt in prompts] if echo else []
        self._texts = [
            _Text(
                logprobs=None
                if sampling.logprobs is None
                else CompletionLogprobs(context.tokenizer, skip_special_tokens=sampling.skip_special_tokens)
            )
            for _ in range(len(prompts) * sampling.n)
        ]

    def opening(self) -> list[dict[str, object]]:
        """Return the echoed prompts, if they were asked for."""
        if not self._echoed:
            return []
        return [
            {
                "index": index,
                "text": self._echoed[index // self._num_choices],
                "logprobs": None,
                "finish_reason": None,
            }
            for index in range(len(self._texts))
        ]

    def delta(self, prompt: int, event: GenerationEvent) -> dict[str, object] | None:
        """Return the piece of an event, None if it brings nothing for the client."""
        index = prompt * self._num_choices + event.choice
        writer = self._texts[index].logprobs
        logprobs = writer.take(event.logprobs) if writer is not None and event.logprobs else None
        if not event.text and event.finish_reason is None and logprobs is None:
            return None
        choice: dict[str, object] = {
            "index": index,
            "text": event.text,
            "logprobs": logprobs,
            "finish_reason": event.finish_reason,
        }
        if event.finish_reason is not None:
            choice["stop_reason"] = event.stop_reason
        return choice

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer."""
        text = self._texts[prompt * self._num_choices + event.choice]
        if text.last is None and self._echoed:
            text.text.add(self._echoed[prompt], charge)
        text.text.add(event.text, charge)
        if text.logprobs is not None:
            text.collected.add(text.logprobs.take(event.logprobs), charge)
        text.last = event

    def whole(self) -> list[dict[str, object]]:
        """Return the finished choices."""
        return [self._choice(index, text) for index, text in enumerate(self._texts)]

    def _choice(self, index: int, text: _Text) -> dict[str, object]:
        assert text.last is not None
        return {
            "index": index,
            "text": text.text.text(),
            "logprobs": None if text.logprobs is None else text.collected.whole(),
            "finish_reason": text.last.finish_reason,
            "stop_reason": text.last.stop_reason,
        }
