"""`EngineServer`: the engine's side of the Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from openautoglm.engine.client import EngineDescription, GenerationEvent
from openautoglm.engine.engine import Engine
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.record import MemoryReport, RequestRecord
from openautoglm.engine.runner import EngineRunner
from openautoglm.engine.watch import EngineMemory
from openautoglm.engine.wire import (
    CLIENT_DECODER,
    PROTOCOL_VERSION,
    Abort,
    Accepted,
    AskMemory,
    AskProfile,
    AskRecord,
    AskReport,
    AskStatus,
    ClientFrame,
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
    Status,
    Welcome,
    encode_frame,
    error_to_wire,
    read_frame,
)
from openautoglm.errors import EngineError, InvalidRequestError, OpenAutoGLMError, OverloadedError
from openautoglm.log import get_logger
from openautoglm.memory.allocator import trim_allocator
from openautoglm.probe.stacks import Profiler, StackProfile

_log = get_logger(__name__)

HELLO_SECONDS = 10.0
MAX_UNREAD_BYTES = 6 << 20
# Tokens of prompts that wait for the engine's next turn, each an object of 36 bytes until then.
MAX_UNTAKEN_TOKENS = 1 << 17
_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Connection:
    """One client; `names` maps the engine's request ids to the client's own and the choices still unfinished."""

    number: int
    writer: asyncio.StreamWriter
    names: dict[str, tuple[str, int]] = field(default_factory=dict)

    def internal_name(self, request_id: str) -> str:
        """Ids of different clients must not meet."""
        return f"{self.number}/{request_id}"

    def send(self, frame: Frame) -> None:
        """Write without waiting; a client that does not read is cut off rather than remembered without bound."""
        if self.writer.is_closing():
            return
        self.writer.write(encode_frame(frame))
        if self.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            _log.warning("client %d does not read its events, closing its connection", self.number)
            self.writer.transport.abort()


class EngineServer:
    """Serves one engine on `path` (mode 0600, in a directory of mode 0700) to clients of the same user.

    A client that breaks the protocol is told so and cut off; when a client goes, its requests are aborted and their
    blocks free. `failed` holds the error once the engine itself has ended. Every method belongs to one event loop.
    """

    def __init__(
        self,
        engine: Engine,
        description: EngineDescription,
        path: Path,
        heartbeat: Heartbeat,
        *,
        memory: EngineMemory | None = None,
    ) -> None:
        self._description = description
        self._path = path
        self._heartbeat = heartbeat
        self._connections: set[_Connection] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._owners: dict[str, _Connection] = {}
        self._num_connections = 0
        self._profiler = Profiler("engine")
        self._untaken_tokens = 0
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[EngineError] = self._loop.create_future()
        self._runner = EngineRunner(
            engine,
            deliver=self._deliver_soon,
            fail=self._fail_soon,
            beat=heartbeat.beat,
            rest=trim_allocator,
            memory=memory,
        )

    async def start(self) -> None:
        """Listen and start the engine's thread; raise `EngineError` if the socket cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise EngineError(f"no socket at {self._path}: {error.strerror or error}") from error
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)
        self._runner.start()

    async def close(self) -> None:
        """End every connection and the engine, and remove the socket."""
        self._server.close()
        for connection in list(self._connections):
            connection.writer.close()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, *self._background, return_exceptions=True)
        await asyncio.to_thread(self._runner.close)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self._num_connections += 1
        connection = _Connection(self._num_connections, writer)
        self._connections.add(connection)
        try:
            if _peer_uid(writer) == os.getuid():
                await self._serve(connection, reader)
        except EngineError as error:
            _log.warning("client %d broke the protocol: %s", connection.number, error)
            connection.send(Fatal(error=error_to_wire(error)))
        except (ConnectionError, TimeoutError) as error:
            _log.info("client %d is gone: %s", connection.number, error)
        except asyncio.CancelledError:
            _log.debug("client %d is cut off: the server closes", connection.number)
        finally:
            self._forget(connection)
            writer.close()
            self._handlers.discard(handler)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            hello = await read_frame(reader, CLIENT_DECODER)
        if not isinstance(hello, Hello) or hello.version != PROTOCOL_VERSION:
            raise EngineError(f"expected Hello of protocol version {PROTOCOL_VERSION}, got {hello!r:.200}")
        connection.send(Welcome(description=self._description))
        while (frame := await read_frame(reader, CLIENT_DECODER)) is not None:
            self._handle(connection, frame)

    def _handle(self, connection: _Connection, frame: ClientFrame) -> None:
        match frame:
            case Generate():
                self._generate(connection, frame)
            case Abort(request_id=request_id):
                name = connection.internal_name(request_id)
                if name in connection.names:
                    self._runner.call(lambda engine: engine.abort(name))
            case AskStatus(call=call):
                # Not a call between steps: liveness must not wait for a long prompt.
                connection.send(Status(call=call, status=self._runner.status(heartbeat=self._heartbeat.value)))
            case AskRecord(call=call, request_id=request_id):
                name = connection.internal_name(request_id)
                found = self._runner.call(lambda engine: engine.explain(name))
                found.add_done_callback(lambda done: self._soon(partial(_answer_record, connection, frame, done)))
            case AskMemory(call=call, budget_bytes=budget_bytes):
                reported = self._runner.memory(budget_bytes)
                reported.add_done_callback(lambda done: self._soon(partial(_answer_memory, connection, call, done)))
            case AskReport(call=call, trace=trace):
                # Beside the connection's other frames, as it takes a while; it ends with the server.
                task = asyncio.create_task(self._answer_report(connection, call, trace))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
            case AskProfile():
                self._answer_profile(connection, frame)
            case Hello():
                raise EngineError("a second Hello: one is enough")

    async def _answer_report(self, connection: _Connection, call: int, trace: bool | None) -> None:
        try:
            report = await asyncio.to_thread(self._runner.report, trace=trace)
        except (OpenAutoGLMError, OSError) as error:
            connection.send(Refused(call=call, error=error_to_wire(error)))
        else:
            connection.send(Report(call=call, report=report))

    def _answer_profile(self, connection: _Connection, frame: AskProfile) -> None:
        try:
            taken = self._profiler.start(seconds=frame.seconds, rate_hz=frame.rate_hz)
        except OverloadedError as error:
            connection.send(Refused(call=frame.call, error=error_to_wire(error)))
            return

        def answer(done: Future[StackProfile]) -> None:
            connection.send(Profile(call=frame.call, profile=done.result()))

        taken.add_done_callback(lambda done: self._soon(partial(answer, done)))

    def _generate(self, connection: _Connection, frame: Generate) -> None:
        name = connection.internal_name(frame.request.request_id)
        if name in connection.names:
            taken = InvalidRequestError(f"request id {frame.request.request_id!r} is in use: choose another")
            connection.send(Refused(call=frame.call, error=error_to_wire(taken)))
            return
        num_tokens = len(frame.request.prompt_tokens)
        if self._untaken_tokens and self._untaken_tokens + num_tokens > MAX_UNTAKEN_TOKENS:
            busy = OverloadedError(
                "too many prompts arrive at once: try again later", retry_after_seconds=_RETRY_SECONDS
            )
            connection.send(Refused(call=frame.call, error=error_to_wire(busy)))
            return
        self._untaken_tokens += num_tokens
        connection.names[name] = (frame.request.request_id, frame.request.sampling.n)
        self._owners[name] = connection
        request = msgspec.structs.replace(frame.request, request_id=name)
        added = self._runner.call(lambda engine: engine.add(request))
        # Answers and events reach the event loop in the order in which the engine's thread produces them.
        answer = partial(self._answer_generate, connection, frame.call, name, num_tokens)
        added.add_done_callback(lambda done: self._soon(partial(answer, done)))

    def _answer_generate(
        self, connection: _Connection, call: int, name: str, num_tokens: int, added: Future[None]
    ) -> None:
        self._untaken_tokens -= num_tokens
        error = added.exception()
        if error is None:
            connection.send(Accepted(call=call))
            return
        connection.names.pop(name, None)
        self._owners.pop(name, None)
        connection.send(Refused(call=call, error=error_to_wire(error)))

    def _soon(self, function: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _deliver_soon(self, events: Sequence[GenerationEvent]) -> None:
        self._soon(partial(self._deliver, events))

    def _deliver(self, events: Sequence[GenerationEvent]) -> None:
        """Send each connection its events of a step in one frame."""
        frames: defaultdict[_Connection, list[GenerationEvent]] = defaultdict(list)
        for event in events:
            connection = self._owners.get(event.request_id)
            if connection is None:
                continue
            request_id, num_unfinished = connection.names[event.request_id]
            record = None if event.record is None else msgspec.structs.replace(event.record, request_id=request_id)
            frames[connection].append(msgspec.structs.replace(event, request_id=request_id, record=record))
            if event.finish_reason is not None:
                connection.names[event.request_id] = (request_id, num_unfinished - 1)
                if num_unfinished == 1:
                    del connection.names[event.request_id], self._owners[event.request_id]
        for connection, news in frames.items():
            connection.send(Events(events=tuple(news)))

    def _fail_soon(self, error: EngineError) -> None:
        self._soon(partial(self._fail, error))

    def _fail(self, error: EngineError) -> None:
        for connection in list(self._connections):
            connection.send(Fatal(error=error_to_wire(error)))
            connection.writer.close()
        if not self.failed.done():
            self.failed.set_result(error)

    def _forget(self, connection: _Connection) -> None:
        """Abort what a connection left behind."""
        self._connections.discard(connection)
        for name in connection.names:
            del self._owners[name]
            self._runner.call(partial(Engine.abort, request_id=name))
        connection.names.clear()


def _answer_record(connection: _Connection, frame: AskRecord, found: Future[RequestRecord | None]) -> None:
    error = found.exception()
    if error is not None:
        connection.send(Refused(call=frame.call, error=error_to_wire(error)))
        return
    record = found.result()
    if record is not None:
        record = msgspec.structs.replace(record, request_id=frame.request_id)
    connection.send(Record(call=frame.call, record=record))


def _answer_memory(connection: _Connection, call: int, reported: Future[MemoryReport]) -> None:
    error = reported.exception()
    if error is None:
        connection.send(Memory(call=call, report=reported.result()))
    else:
        connection.send(Refused(call=call, error=error_to_wire(error)))


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
