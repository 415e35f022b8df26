"""`SocketEngineClient`: an `EngineClient` over the Unix socket of an engine process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from openautoglm.engine.client import EngineDescription, EngineStatus, GenerationEvent, GenerationRequest
from openautoglm.engine.record import MemoryReport, RequestRecord, WatchdogReport
from openautoglm.engine.streams import Backlog, EventStream
from openautoglm.engine.wire import (
    PROTOCOL_VERSION,
    SERVER_DECODER,
    Abort,
    Accepted,
    AskMemory,
    AskProfile,
    AskRecord,
    AskReport,
    AskStatus,
    Events,
    Fatal,
    Frame,
    Generate,
    Hello,
    Memory,
    Profile,
    Record,
    Refused,
    Report,
    ServerFrame,
    Status,
    Welcome,
    encode_frame,
    error_from_wire,
    read_frame,
)
from openautoglm.errors import EngineError, InvalidRequestError
from openautoglm.probe.stacks import StackProfile

CONNECT_SECONDS = 10.0
T = TypeVar("T")


class _Link:
    """One connection: calls that wait for an answer, streams that wait for events, and one task that reads."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, welcome: Welcome, backlog: Backlog
    ) -> None:
        self._backlog = backlog
        self.description = welcome.description
        self.error: EngineError | None = None
        self._reader = reader
        self._writer = writer
        self._num_calls = 0
        self._answers: dict[int, asyncio.Future[ServerFrame]] = {}
        self._streams: dict[str, EventStream] = {}
        self._task = asyncio.create_task(self._read(), name="openautoglm-engine-link")

    @classmethod
    async def open(cls, path: Path, backlog: Backlog) -> _Link:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(encode_frame(Hello(version=PROTOCOL_VERSION)))
                answer = await read_frame(reader, SERVER_DECODER)
        except (OSError, TimeoutError) as error:
            raise EngineError(f"the engine does not answer at {path}: {error or 'no answer in time'}") from error
        if isinstance(answer, Welcome):
            return cls(reader, writer, answer, backlog)
        writer.close()
        reason = error_from_wire(answer.error) if isinstance(answer, Fatal) else f"it answered {answer!r:.200}"
        raise EngineError(f"the engine at {path} refuses this client: {reason}")

    def send(self, frame: Frame) -> None:
        """Write a frame without waiting; nothing is written to a link that has ended."""
        if self.error is None:
            self._writer.write(encode_frame(frame))

    def next_call(self) -> int:
        """Return a fresh number for a call."""
        self._num_calls += 1
        return self._num_calls

    async def ask(self, call: int, data: bytes) -> ServerFrame:
        """Write the bytes of a call and wait for its answer; raise the error that it names."""
        if self.error is not None:
            raise EngineError(str(self.error))
        answer: asyncio.Future[ServerFrame] = asyncio.get_running_loop().create_future()
        self._answers[call] = answer
        try:
            self._writer.write(data)
            frame = await answer
        finally:
            self._answers.pop(call, None)
        if isinstance(frame, Refused):
            raise error_from_wire(frame.error)
        return frame

    def follow(self, request: GenerationRequest) -> EventStream:
        """Open the stream of a request's events."""
        if request.request_id in self._streams:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use: choose another")
        stream = self._streams[request.request_id] = EventStream(request.sampling.n, self._backlog)
        return stream

    def leave(self, request_id: str) -> None:
        """Close the stream of a request."""
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.close()

    async def close(self) -> None:
        """End the connection and everything on it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        error = EngineError("the engine is gone: its connection ended")
        try:
            while (frame := await read_frame(self._reader, SERVER_DECODER)) is not None:
                if isinstance(frame, Fatal):
                    error = EngineError(f"the engine ended: {frame.error.message}")
                    break
                self._take(frame)
        except (EngineError, ConnectionError) as failure:
            error = EngineError(f"the engine is gone: {failure}")
        finally:
            self._end(error)

    def _take(self, frame: ServerFrame) -> None:
        match frame:
            case Events(events=events):
                for event in events:
                    stream = self._streams.get(event.request_id)
                    if stream is not None:
                        stream.put(event)
                self._cut_slowest()
            case (
                Accepted(call=call)
                | Refused(call=call)
                | Status(call=call)
                | Record(call=call)
                | Memory(call=call)
                | Report(call=call)
                | Profile(call=call)
            ):
                answer = self._answers.get(call)
                if answer is not None and not answer.done():
                    answer.set_result(frame)
            case _:
                raise EngineError(f"unexpected {type(frame).__name__} frame")

    def _cut_slowest(self) -> None:
        """Abort what nobody reads: its reader may hang in a write for as long as its client likes."""
        for cut in self._backlog.cut_slowest():
            for request_id, stream in self._streams.items():
                if stream is cut:
                    self.send(Abort(request_id=request_id))

    def _end(self, error: EngineError) -> None:
        self.error = error
        self._writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        for stream in self._streams.values():
            stream.fail(error)


class SocketEngineClient:
    """Connects when first used, and again after the engine process was replaced. One event loop only.

    Events that nobody has read yet take at most `max_unread_bytes`: beyond that the slowest readers' requests end.
    """

    def __init__(self, path: Path, *, max_unread_bytes: int | None = None) -> None:
        self._path = path
        self._backlog = Backlog(max_unread_bytes)
        self._link: _Link | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def describe(self) -> EngineDescription:
        """Return what is loaded; raise `EngineError` if the engine is gone."""
        return (await self._connected()).description

    async def generate(
        self, request: GenerationRequest, *, on_accepted: Callable[[], None] | None = None
    ) -> AsyncIterator[GenerationEvent]:
        """Submit and yield events until every choice has finished; see `EngineClient`."""
        link = await self._connected()
        call, request_id = link.next_call(), request.request_id
        try:
            data = encode_frame(Generate(call=call, request=request))
        except EngineError as error:
            raise InvalidRequestError(f"{error}: send a shorter request", param="prompt") from error
        stream = link.follow(request)
        del request
        refused = False
        try:
            try:
                await link.ask(call, data)
            except Exception:
                refused = True
                raise
            del data
            if on_accepted is not None:
                on_accepted()
            async for event in stream.events():
                yield event
        finally:
            link.leave(request_id)
            if not stream.finished and not refused:
                link.send(Abort(request_id=request_id))

    async def abort(self, request_id: str) -> None:
        """End a request; its choices finish with "abort". Unknown ids are ignored."""
        (await self._connected()).send(Abort(request_id=request_id))

    async def status(self) -> EngineStatus:
        """Return counters and gauges; raise `EngineError` if the engine is gone."""
        return (await self._ask(Status, lambda call: AskStatus(call=call))).status

    async def explain(self, request_id: str) -> RequestRecord | None:
        """Return where a request's time went; None for one that is unknown, forgotten or of another connection."""
        return (await self._ask(Record, lambda call: AskRecord(call=call, request_id=request_id))).record

    async def memory(self, budget_bytes: int | None = None) -> MemoryReport:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first; see `EngineClient`."""
        return (await self._ask(Memory, lambda call: AskMemory(call=call, budget_bytes=budget_bytes))).report

    async def report(self, *, trace: bool | None = None) -> WatchdogReport:
        """Return where the memory of the engine's process is; see `EngineClient`."""
        return (await self._ask(Report, lambda call: AskReport(call=call, trace=trace))).report

    async def profile(self, *, seconds: float, rate_hz: int) -> StackProfile:
        """Return what the engine's process was doing; see `EngineClient`."""
        answer = await self._ask(Profile, lambda call: AskProfile(call=call, seconds=seconds, rate_hz=rate_hz))
        return answer.profile

    @property
    def unread_bytes(self) -> int:
        """What events that nobody has read yet take."""
        return self._backlog.num_bytes

    async def close(self) -> None:
        """Close the connection; the engine goes on for others."""
        self._closed = True
        if self._link is not None:
            await self._link.close()

    async def _ask(self, kind: type[T], question: Callable[[int], Frame]) -> T:
        """Ask what `question` makes of a call's number; raise `EngineError` if the engine is gone."""
        link = await self._connected()
        call = link.next_call()
        answer = await link.ask(call, encode_frame(question(call)))
        if not isinstance(answer, kind):
            raise EngineError(f"unexpected answer {type(answer).__name__}: this is a bug, please report it")
        return answer

    async def _connected(self) -> _Link:
        async with self._lock:
            if self._closed:
                raise EngineError("this client is closed: make a new one")
            if self._link is None or self._link.error is not None:
                self._link = await _Link.open(self._path, self._backlog)
            return self._link
