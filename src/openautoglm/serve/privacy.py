"""Redaction at the edge: of what goes to the model, of its answers, and of the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from openautoglm.engine.client import GenerationEvent
from openautoglm.errors import InvalidRequestError
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.redact import Mode, RedactionOptions, Redactor, StreamRedactor

# Of one request. What stands for private data may be longer, and a body was charged as it came.
MAX_MATCHES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyOptions:
    """What is redacted: nothing without `redaction`; answers too with `answers`."""

    redaction: RedactionOptions | None = None
    answers: bool = False


class Privacy:
    """Redacts one server's requests, answers and log lines as its options say."""

    def __init__(self, options: PrivacyOptions | None = None) -> None:
        options = options or PrivacyOptions()
        redaction = options.redaction
        self.redactor = None if redaction is None else Redactor(redaction)
        self._answers = self.redactor if options.answers else None
        self._log: Redactor | None = None
        if redaction is not None:
            # A line of the log cannot be refused.
            mode = Mode.MASK if redaction.mode is Mode.BLOCK else redaction.mode
            self._log = Redactor(RedactionOptions(mode=mode, kinds=redaction.kinds, key=redaction.key))

    @property
    def redacts_log(self) -> bool:
        """Whether lines of the log are redacted."""
        return self._log is not None

    def log_line(self, line: str) -> str:
        """Return a line of the log as it may be written."""
        return line if self._log is None else self._log.redact(line, Counter())

    def answer(self) -> AnswerRedaction | None:
        """Return what redacts one request's answer, None if answers stay as they are."""
        return None if self._answers is None else AnswerRedaction(self._answers)

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raise `InvalidRequestError` for what would spell the answer beside its redacted text."""
        if self._answers is not None and sampling.logprobs is not None:
            raise InvalidRequestError(
                "logprobs cannot be honoured: this server redacts answers, and they would spell what is redacted",
                param="logprobs",
            )


class AnswerRedaction:
    """Redacts the choices of one request as their text comes; `counts` says how often, by kind."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._streams: dict[tuple[int, int], StreamRedactor] = {}
        self.counts: Counter[str] = Counter()

    def event(self, prompt: int, event: GenerationEvent) -> GenerationEvent:
        """Return the event with the text that may be shown; raise `PrivateDataError` in block mode."""
        stream = self._streams.get((prompt, event.choice))
        if stream is None:
            stream = self._streams[prompt, event.choice] = self._redactor.stream(self.counts)
        text = stream.push(event.text)
        if event.finish_reason is not None:
            text += stream.flush()
        return event if text == event.text else msgspec.structs.replace(event, text=text)


def redact_value(value: object, redactor: Redactor, counts: Counter[str]) -> object:
    """Return messages, or any other JSON, with every text in it redacted; numbers too, where one is private data."""
    if isinstance(value, str):
        return redactor.redact(value, counts, max_matches=MAX_MATCHES)
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
        redacted = redactor.redact(text, counts, max_matches=MAX_MATCHES)
        return value if redacted == text else redacted
    if isinstance(value, Mapping):
        return {
            redact_value(name, redactor, counts): redact_value(item, redactor, counts) for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_value(item, redactor, counts) for item in value]
    return value
