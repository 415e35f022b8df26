"""`EventStream`: the events of one request, from where they arrive to the coroutine that reads them; `Backlog`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from openautoglm.engine.client import GenerationEvent
from openautoglm.errors import EngineError, OpenAutoGLMError, OverloadedError
from openautoglm.memory.requests import event_bytes

_RETRY_SECONDS = 1.0


class Backlog:
    """What the streams of one event loop hold for readers that have not come yet; at most `max_bytes` (None: any)."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._streams: set[EventStream] = set()
        self.num_bytes = 0

    def add(self, stream: EventStream) -> None:
        """Count a stream in."""
        self._streams.add(stream)

    def discard(self, stream: EventStream) -> None:
        """Count a stream out."""
        self._streams.discard(stream)

    def cut_slowest(self) -> list[EventStream]:
        """End the streams that hold most until the rest is within the bound; return those: their requests must end."""
        cut: list[EventStream] = []
        while self._max_bytes is not None and self.num_bytes > self._max_bytes and self._streams:
            slowest = max(self._streams, key=lambda stream: stream.num_bytes)
            if not slowest.num_bytes:
                break
            slowest.cut(
                OverloadedError(
                    "the answer was not read as fast as it came, and ended here: read streams as they come",
                    retry_after_seconds=_RETRY_SECONDS,
                )
            )
            cut.append(slowest)
        return cut


class EventStream:
    """A queue of events in one event loop; only code in that loop may call it. `close` it when nobody reads on."""

    def __init__(self, num_choices: int, backlog: Backlog | None = None) -> None:
        self._unfinished = num_choices
        self._news: asyncio.Queue[tuple[GenerationEvent | OpenAutoGLMError, int]] = asyncio.Queue()
        self._backlog = Backlog() if backlog is None else backlog
        self._backlog.add(self)
        self._ended = False
        self.num_bytes = 0

    @property
    def finished(self) -> bool:
        """Whether the reader has seen the last event of every choice."""
        return self._unfinished == 0

    def put(self, event: GenerationEvent) -> None:
        """Add an event; after a cut or a close it is dropped."""
        if self._ended:
            return
        num_logprobs = sum(len(token.top) + 1 for token in event.logprobs)
        size = event_bytes(num_logprobs, len(event.text))
        self._count(size)
        self._news.put_nowait((event, size))

    def fail(self, error: EngineError) -> None:
        """End the stream with an error, after what has already arrived."""
        self._news.put_nowait((error, 0))

    def cut(self, error: OpenAutoGLMError) -> None:
        """End the stream with an error now; what has arrived and was not read is dropped."""
        self.close()
        self._news.put_nowait((error, 0))

    def close(self) -> None:
        """Drop what was not read; safe to call twice."""
        self._ended = True
        while not self._news.empty():
            self._news.get_nowait()
        self._count(-self.num_bytes)
        self._backlog.discard(self)

    async def events(self) -> AsyncIterator[GenerationEvent]:
        """Yield events until every choice has finished; raise the error that ended the stream."""
        while self._unfinished:
            news, size = await self._news.get()
            if isinstance(news, EngineError):
                raise EngineError(str(news)) from news
            if isinstance(news, OpenAutoGLMError):
                raise news
            self._count(-size)
            self._unfinished -= news.finish_reason is not None
            yield news

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._backlog.num_bytes += num_bytes
