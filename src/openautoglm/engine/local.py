"""`LocalEngineClient`: an `EngineClient` over an engine in a thread of this process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from openautoglm.engine.client import EngineDescription, EngineStatus, GenerationEvent, GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.record import MemoryReport, RequestRecord, WatchdogReport
from openautoglm.engine.runner import EngineRunner
from openautoglm.engine.streams import EventStream
from openautoglm.engine.watch import EngineMemory
from openautoglm.errors import EngineError, InvalidRequestError
from openautoglm.probe.stacks import Profiler, StackProfile


@dataclass(frozen=True, slots=True)
class _Reader:
    loop: asyncio.AbstractEventLoop
    stream: EventStream


class LocalEngineClient:
    """Owns the engine: `close` closes it. Usable from several event loops, one after the other or at once."""

    def __init__(self, engine: Engine, description: EngineDescription, *, memory: EngineMemory | None = None) -> None:
        self._description = description
        self._readers: dict[str, _Reader] = {}
        self._error: EngineError | None = None
        self._heartbeat = 0
        self._profiler = Profiler("engine")
        self._runner = EngineRunner(engine, deliver=self._deliver, fail=self._fail, beat=self._beat, memory=memory)
        self._runner.start()

    async def describe(self) -> EngineDescription:
        """Return what is loaded; raise `EngineError` if the engine is gone."""
        if self._error is not None:
            raise EngineError(str(self._error))
        return self._description

    async def generate(
        self, request: GenerationRequest, *, on_accepted: Callable[[], None] | None = None
    ) -> AsyncIterator[GenerationEvent]:
        """Submit and yield events until every choice has finished; see `EngineClient`."""
        name = request.request_id
        if name in self._readers:
            raise InvalidRequestError(f"request id {name!r} is in use: choose another")
        stream = EventStream(request.sampling.n)
        self._readers[name] = _Reader(asyncio.get_running_loop(), stream)
        added = False
        try:
            adding = asyncio.wrap_future(self._runner.call(lambda engine: engine.add(request)))
            # Only a refusal leaves nothing to abort: a cancelled wait may have been added all the same.
            added = True
            try:
                await adding
            except Exception:
                added = False
                raise
            if on_accepted is not None:
                on_accepted()
            async for event in stream.events():
                yield event
        finally:
            self._readers.pop(name, None)
            if added and not stream.finished:
                self._runner.call(lambda engine: engine.abort(name))

    async def abort(self, request_id: str) -> None:
        """End a request; its choices finish with "abort". Unknown ids are ignored."""
        await asyncio.wrap_future(self._runner.call(lambda engine: engine.abort(request_id)))

    async def status(self) -> EngineStatus:
        """Return counters and gauges; raise `EngineError` if the engine is gone."""
        return self._runner.status(heartbeat=self._heartbeat)

    async def explain(self, request_id: str) -> RequestRecord | None:
        """Return where a request's time went, running or ended; None for one that is unknown or forgotten."""
        return await asyncio.wrap_future(self._runner.call(lambda engine: engine.explain(request_id)))

    async def memory(self, budget_bytes: int | None = None) -> MemoryReport:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first; see `EngineClient`."""
        return await asyncio.wrap_future(self._runner.memory(budget_bytes))

    async def report(self, *, trace: bool | None = None) -> WatchdogReport:
        """Return where the memory of this process is; `trace` starts or stops following allocations."""
        return await asyncio.to_thread(self._runner.report, trace=trace)

    async def profile(self, *, seconds: float, rate_hz: int) -> StackProfile:
        """Return what this process was doing; see `EngineClient`."""
        return await asyncio.wrap_future(self._profiler.start(seconds=seconds, rate_hz=rate_hz))

    async def close(self) -> None:
        """Close the engine; what still runs ends with `EngineError`."""
        await asyncio.to_thread(self._runner.close)

    def _beat(self) -> None:
        self._heartbeat += 1

    def _deliver(self, events: Sequence[GenerationEvent]) -> None:
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[EventStream, GenerationEvent]]] = defaultdict(list)
        for event in events:
            reader = self._readers.get(event.request_id)
            if reader is not None:
                by_loop[reader.loop].append((reader.stream, event))
        for loop, news in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put_all, news)

    def _fail(self, error: EngineError) -> None:
        self._error = error
        for reader in list(self._readers.values()):
            if not reader.loop.is_closed():
                reader.loop.call_soon_threadsafe(partial(reader.stream.fail, error))


def _put_all(news: list[tuple[EventStream, GenerationEvent]]) -> None:
    for stream, event in news:
        stream.put(event)
