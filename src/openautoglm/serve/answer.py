"""Answers, whole or streamed: what all protocols have in common, and the envelope of chat and plain completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from openautoglm.engine.client import GenerationEvent
from openautoglm.log import get_logger
from openautoglm.serve.connection import DONE, PING, event_bytes
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation, Usage
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.replies import ErrorReply, internal_reply, reply_for

_logger = get_logger(__name__)


class Writer(Protocol):
    """How a protocol writes an answer: the pieces of a stream, or one object of what `take` has kept."""

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield what comes before any text."""
        ...

    def event(self, prompt: int, event: GenerationEvent, *, news: bool) -> Iterable[bytes]:
        """Yield the pieces that an event is; with `news` the answer's extension has changed."""
        ...

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """Yield what comes when every choice has ended."""
        ...

    def failed(self, reply: ErrorReply, request_id: str) -> bytes:
        """Return the piece that ends a stream which failed."""
        ...

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer; raise `OverloadedError` where there is no room for it."""
        ...

    def whole(self, usage: Usage) -> dict[str, object]:
        """Return the finished answer."""
        ...

    def close(self) -> None:
        """Give back what it holds; called however the answer ends."""
        return


class Choices(Protocol):
    """How one kind of answer writes its choices."""

    chunk_object: str
    whole_object: str

    def opening(self) -> list[dict[str, object]]:
        """Return what comes before any event, one piece per choice."""
        ...

    def delta(self, prompt: int, event: GenerationEvent) -> dict[str, object] | None:
        """Return the piece of a stream that an event is, None for nothing."""
        ...

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer; raise `OverloadedError` where there is no room for it."""
        ...

    def whole(self) -> list[dict[str, object]]:
        """Return the finished choices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an answer is called, and the fields that every chunk repeats.

    `prefix` begins its id. `extension` stands in whole answers and a stream's first chunk; and again in a prompt's last
    one if the memory ladder touched it.
    """

    prefix: str
    model: str
    fingerprint: str
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    extension: Extension = field(default_factory=Extension)

    @property
    def id(self) -> str:
        """The id that all chunks share."""
        return f"{self.prefix}{self.identity}"

    def envelope(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        """Return one object of the answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def told(self) -> dict[str, object]:
        """Return the `openautoglm` field, or nothing when there is nothing to tell."""
        told = self.extension.as_dict()
        return {"openautoglm": told} if told else {}


async def whole_answer(answer: Answer, generation: Generation, writer: Writer, charge: AnswerCharge) -> bytes:
    """Wait for every choice and return the answer as JSON; `charge` is what it takes until it is sent."""
    async for prompt, event in generation.events():
        writer.take(prompt, event, charge)
        if event.record is not None:
            answer.extension.touched(event.record)
    answer.extension.redacted("answer", generation.redacted)
    return msgspec.json.encode(writer.whole(generation.usage))


async def stream_answer(
    answer: Answer,
    generation: Generation,
    writer: Writer,
    first: tuple[int, GenerationEvent] | None,
    *,
    ping_seconds: float,
    request_id: str,
) -> AsyncIterator[bytes]:
    """Yield server-sent events; `first` is the event that was waited for before, None if there was a silence.

    A failure becomes an error event, after which nothing comes: a client that waits for the end sees that it failed.
    """
    try:
        for piece in writer.opening(generation.usage):
            yield piece
        item = first
        while True:
            if item is None:
                yield PING
            else:
                news = item[1].record is not None
                if item[1].record is not None:
                    answer.extension.touched(item[1].record)
                if generation.finished and generation.redacted:
                    answer.extension.redacted("answer", generation.redacted)
                    news = True
                for piece in writer.event(*item, news=news):
                    yield piece
            if generation.finished:
                break
            item = await generation.next(ping_seconds)
        for piece in writer.closing(generation.usage):
            yield piece
    except Exception as error:
        reply = reply_for(error)
        if reply is None:
            _logger.exception("request %s failed in mid-stream", request_id)
            reply = internal_reply(request_id)
        elif reply.status >= 500:
            _logger.warning("request %s failed in mid-stream: %s", request_id, error)
        yield writer.failed(reply, request_id)


class ChoicesWriter(Writer):
    """Chat and plain completions: chunks in OpenAI's envelope, or one object with all choices."""

    def __init__(self, answer: Answer, choices: Choices, *, include_usage: bool) -> None:
        self._answer = answer
        self._choices = choices
        self._include_usage = include_usage
        # With usage asked for, OpenAI's chunks carry the field all along, null until the last.
        self._extra: dict[str, object] = {"usage": None} if include_usage else {}
        self._told: dict[str, object] = {}

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield what comes before any event, one chunk per choice."""
        self._told = self._answer.told()
        for choice in self._choices.opening():
            yield self._chunk(choice)

    def event(self, prompt: int, event: GenerationEvent, *, news: bool) -> Iterable[bytes]:
        """Yield the chunk of an event, if it is one."""
        choice = self._choices.delta(prompt, event)
        if self._answer.extension.take_late() or news:
            self._told = self._answer.told()
        return () if choice is None else (self._chunk(choice),)

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """Yield the usage, if it was asked for, and the end."""
        if self._include_usage:
            envelope = self._answer.envelope(self._choices.chunk_object, [])
            yield event_bytes(envelope | {"usage": usage.as_dict()})
        yield DONE

    def failed(self, reply: ErrorReply, request_id: str) -> bytes:
        """Return the error as an event."""
        return event_bytes(reply.body())

    def take(self, prompt: int, event: GenerationEvent, charge: AnswerCharge) -> None:
        """Keep an event for the whole answer."""
        self._choices.take(prompt, event, charge)

    def whole(self, usage: Usage) -> dict[str, object]:
        """Return the finished answer."""
        envelope = self._answer.envelope(self._choices.whole_object, self._choices.whole())
        return envelope | {"usage": usage.as_dict()} | self._answer.told()

    def _chunk(self, choice: dict[str, object]) -> bytes:
        news, self._told = self._told, {}
        return event_bytes(self._answer.envelope(self._choices.chunk_object, [choice]) | self._extra | news)
