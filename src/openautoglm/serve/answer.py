"""Answers in their envelope, whole or streamed: what chat and plain completions have in common."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from openautoglm.engine.client import GenerationEvent
from openautoglm.log import get_logger
from openautoglm.serve.connection import DONE, PING, event_bytes
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation
from openautoglm.serve.intake import AnswerCharge
from openautoglm.serve.replies import internal_reply, reply_for

_logger = get_logger(__name__)


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
    """The envelope: fields that every chunk repeats. `extension` stands in whole answers and a stream's first chunk;
    and again in a prompt's last one if the memory ladder touched it."""

    prefix: str
    model: str
    fingerprint: str
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    extension: Extension = field(default_factory=Extension)

    @property
    def id(self) -> str:
        """The id that all chunks share."""
        return f"{self.prefix}-{self.identity}"

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


async def whole_answer(answer: Answer, generation: Generation, choices: Choices, charge: AnswerCharge) -> bytes:
    """Wait for every choice and return the answer as JSON; `charge` is what it takes until it is sent."""
    async for prompt, event in generation.events():
        choices.take(prompt, event, charge)
        if event.record is not None:
            answer.extension.touched(event.record)
    answer.extension.redacted("answer", generation.redacted)
    usage = {"usage": generation.usage.as_dict()}
    return msgspec.json.encode(answer.envelope(choices.whole_object, choices.whole()) | usage | answer.told())


async def stream_answer(
    answer: Answer,
    generation: Generation,
    choices: Choices,
    first: tuple[int, GenerationEvent] | None,
    *,
    include_usage: bool,
    ping_seconds: float,
    request_id: str,
) -> AsyncIterator[bytes]:
    """Yield server-sent events; `first` is the event that was waited for before, None if there was a silence.

    A failure becomes an error event, after which nothing comes: a client that waits for [DONE] sees that it failed.
    """
    # With usage asked for, OpenAI's chunks carry the field all along, null until the last.
    extra: dict[str, object] = {"usage": None} if include_usage else {}

    told = answer.told()

    def chunk(choice: dict[str, object]) -> bytes:
        nonlocal told
        news, told = told, {}
        return event_bytes(answer.envelope(choices.chunk_object, [choice]) | extra | news)

    try:
        for choice in choices.opening():
            yield chunk(choice)
        item = first
        while True:
            if item is None:
                yield PING
            else:
                if item[1].record is not None:
                    answer.extension.touched(item[1].record)
                    told = answer.told()
                if generation.finished and generation.redacted:
                    answer.extension.redacted("answer", generation.redacted)
                    told = answer.told()
                choice_or_none = choices.delta(*item)
                if answer.extension.take_late():
                    told = answer.told()
                if choice_or_none is not None:
                    yield chunk(choice_or_none)
            if generation.finished:
                break
            item = await generation.next(ping_seconds)
        if include_usage:
            yield event_bytes(answer.envelope(choices.chunk_object, []) | {"usage": generation.usage.as_dict()})
        yield DONE
    except Exception as error:
        reply = reply_for(error)
        if reply is None:
            _logger.exception("request %s failed in mid-stream", request_id)
            reply = internal_reply(request_id)
        elif reply.status >= 500:
            _logger.warning("request %s failed in mid-stream: %s", request_id, error)
        yield event_bytes(reply.body())
