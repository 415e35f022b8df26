"""`EventStream`: the events of one request, from where they arrive to the coroutine that reads them; `Backlog`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from openautoglm.engine.client import GenerationEvent
from openautoglm.errors import EngineError, OpenAutoGLMError, OverloadedError
from openautoglm.memory.requests import EVENT_BYTES, EVENT_TOKEN_BYTES, event_bytes
from openautoglm.units import KIB

# Text and tokens that one stream may hold whose reader takes nothing for so long; logprobs, which are large where they
# are asked for, count in the sum only.
MAX_UNREAD_BYTES = 40 * KIB
PATIENCE_SECONDS = 2.0
# Events that nobody has read are joined into pieces of this size: readers take a few pieces at a time.
_PIECE_BYTES = 2 * KIB
_RETRY_SECONDS = 1.0


class Backlog:
    """What the streams of one event loop hold for readers that have not come yet.

    With `max_bytes` it is at most so much, and of text and tokens at most `MAX_UNREAD_BYTES` for a reader that has
    taken nothing for `PATIENCE_SECONDS`; events are joined while they wait. None leaves events as they come.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._streams: set[EventStream] = set()
        self._overfull: set[EventStream] = set()
        self.num_bytes = 0

    @property
    def bounded(self) -> bool:
        """Whether there is a limit."""
        return self._max_bytes is not None

    def add(self, stream: EventStream) -> None:
        """Count a stream in."""
        self._streams.add(stream)

    def discard(self, stream: EventStream) -> None:
        """Count a stream out."""
        self._streams.discard(stream)
        self._overfull.discard(stream)

    def overfull(self, stream: EventStream) -> None:
        """Take note of a stream that holds more than one may."""
        self._overfull.add(stream)

    def cut_slowest(self) -> list[EventStream]:
        """End streams that hold too much, and those that hold most until the rest is within the bound.

        Return them: their requests must end.
        """
        cut = list(self._overfull)
        for stream in cut:
            stream.cut(_too_slow())
        while self._max_bytes is not None and self.num_bytes > self._max_bytes and self._streams:
            slowest = max(self._streams, key=lambda stream: stream.num_bytes)
            if not slowest.num_bytes:
                break
            slowest.cut(_too_slow())
            cut.append(slowest)
        return cut


def _too_slow() -> OverloadedError:
    return OverloadedError(
        "the answer was not read as fast as it came, and ended here: read streams as they come",
        retry_after_seconds=_RETRY_SECONDS,
    )


@dataclass(slots=True)
class _Piece:
    """One or several events of a choice; `plain_bytes` is what they take without logprobs."""

    event: GenerationEvent
    num_bytes: int
    plain_bytes: int


class EventStream:
    """A queue of events in one event loop; only code in that loop may call it. `close` it when nobody reads on."""

    def __init__(self, num_choices: int, backlog: Backlog | None = None) -> None:
        self._unfinished = num_choices
        self._news: asyncio.Queue[_Piece | OpenAutoGLMError] = asyncio.Queue()
        # Choice -> the last of its pieces that nobody has taken.
        self._unread: dict[int, _Piece] = {}
        self._backlog = Backlog() if backlog is None else backlog
        self._backlog.add(self)
        self._ended = False
        self.num_bytes = 0
        self._plain_bytes = 0
        self._taken = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether the reader has seen the last event of every choice."""
        return self._unfinished == 0

    def put(self, event: GenerationEvent) -> None:
        """Add an event, where events are joined to those of its choice that nobody has read yet.

        After a cut or a close it is dropped.
        """
        if self._ended:
            return
        num_logprobs = sum(len(token.top) + 1 for token in event.logprobs)
        plain_bytes = event_bytes(0, len(event.text))
        num_bytes = event_bytes(num_logprobs, len(event.text)) + len(event.embedding)
        piece = self._unread.get(event.choice) if self._backlog.bounded else None
        if piece is not None and piece.num_bytes < _PIECE_BYTES:
            more = len(event.tokens) * EVENT_TOKEN_BYTES - EVENT_BYTES
            piece.event = _joined(piece.event, event)
            piece.num_bytes += num_bytes + more
            piece.plain_bytes += plain_bytes + more
            self._count(num_bytes + more, plain_bytes + more)
        else:
            piece = self._unread[event.choice] = _Piece(event, num_bytes, plain_bytes)
            self._count(num_bytes, plain_bytes)
            self._news.put_nowait(piece)
        # Who reads, if not as fast as it comes, is only slow; whoever takes nothing may never.
        idle_seconds = time.monotonic() - self._taken if self._plain_bytes > MAX_UNREAD_BYTES else 0.0
        if idle_seconds > PATIENCE_SECONDS and self._backlog.bounded:
            self._backlog.overfull(self)

    def fail(self, error: EngineError) -> None:
        """End the stream with an error, after what has already arrived."""
        self._news.put_nowait(error)

    def cut(self, error: OpenAutoGLMError) -> None:
        """End the stream with an error now; what has arrived and was not read is dropped."""
        self.close()
        self._news.put_nowait(error)

    def close(self) -> None:
        """Drop what was not read; safe to call twice."""
        self._ended = True
        while not self._news.empty():
            self._news.get_nowait()
        self._unread.clear()
        self._count(-self.num_bytes, -self._plain_bytes)
        self._backlog.discard(self)

    async def events(self) -> AsyncIterator[GenerationEvent]:
        """Yield events until every choice has finished; raise the error that ended the stream."""
        while self._unfinished:
            news = await self._news.get()
            self._taken = time.monotonic()
            if isinstance(news, EngineError):
                raise EngineError(str(news)) from news
            if isinstance(news, OpenAutoGLMError):
                raise news
            event = news.event
            if self._unread.get(event.choice) is news:
                del self._unread[event.choice]
            self._count(-news.num_bytes, -news.plain_bytes)
            self._unfinished -= event.finish_reason is not None
            yield event

    def _count(self, num_bytes: int, plain_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._plain_bytes += plain_bytes
        self._backlog.num_bytes += num_bytes


def _joined(first: GenerationEvent, second: GenerationEvent) -> GenerationEvent:
    """Return two events of a choice as one; all but what adds up is as the second has it."""
    return msgspec.structs.replace(
        second,
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
    )
