"""`EventStream`: the events of one request, from where they arrive to the coroutine that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from openautoglm.engine.client import GenerationEvent
from openautoglm.errors import EngineError


class EventStream:
    """A queue of events in one event loop; only code in that loop may call it."""

    def __init__(self, num_choices: int) -> None:
        self._unfinished = num_choices
        self._news: asyncio.Queue[GenerationEvent | EngineError] = asyncio.Queue()

    @property
    def finished(self) -> bool:
        """Whether the reader has seen the last event of every choice."""
        return self._unfinished == 0

    def put(self, event: GenerationEvent) -> None:
        """Add an event."""
        self._news.put_nowait(event)

    def fail(self, error: EngineError) -> None:
        """End the stream with an error, after what has already arrived."""
        self._news.put_nowait(error)

    async def events(self) -> AsyncIterator[GenerationEvent]:
        """Yield events until every choice has finished; raise the error that ended the stream."""
        while self._unfinished:
            news = await self._news.get()
            if isinstance(news, EngineError):
                raise EngineError(str(news)) from news
            self._unfinished -= news.finish_reason is not None
            yield news
