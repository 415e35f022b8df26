"""The engine's process: `python -m openautoglm.engine.worker`, started by `EngineProcess`.

Standard input carries `Start` and then `Stop`; its end means that the parent is gone. Standard output carries
`Loading`, then `Ready` or `Failed`; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from openautoglm.engine.client import EngineDescription
from openautoglm.engine.engine import Engine
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.opening import open_model
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.process import HEARTBEAT_NAME, SOCKET_NAME
from openautoglm.engine.server import EngineServer
from openautoglm.engine.watch import EngineMemory
from openautoglm.engine.wire import (
    CONTROL_DECODER,
    Failed,
    Frame,
    Loading,
    Ready,
    Start,
    encode_frame,
    error_to_wire,
    read_frame_blocking,
)
from openautoglm.errors import EngineError, OpenAutoGLMError
from openautoglm.log import configure_logging, get_logger
from openautoglm.memory.allocator import bound_allocator
from openautoglm.progress import Progress, ProgressCallback

_log = get_logger(__name__)

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 5.0


class Opened(Protocol):
    """What an opener returns: an engine and what its clients are told of it."""

    @property
    def engine(self) -> Engine:
        """The engine, ready for requests."""
        ...

    @property
    def description(self) -> EngineDescription:
        """What is loaded."""
        ...

    @property
    def memory(self) -> EngineMemory | None:
        """The ladder and its probe, None for an engine without."""
        ...


Opener = Callable[[EngineOptions, ProgressCallback, Heartbeat], Opened]


class _LifeLine:
    """Ends the process when the parent says so or is gone: in good order while serving, at once while loading."""

    def __init__(self, commands: BinaryIO, start: Start) -> None:
        self._commands = commands
        self._start = start
        self._lock = threading.Lock()
        self._end: Callable[[], None] = self._exit
        self._ended = threading.Event()
        self._orphaned = False
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, self._parent_died)
        # The terminal's Ctrl-C reaches the whole group; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() != start.parent_pid:
            self._orphaned = True
            self._exit()
        threading.Thread(target=self._watch, name="openautoglm-lifeline", daemon=True).start()

    def serving(self, end: Callable[[], None]) -> None:
        """From now on end by calling `end` (from any thread), and at once only if that takes too long."""
        with self._lock:
            self._end = end

    def ended(self) -> None:
        """The process is ending in good order."""
        self._ended.set()

    def _watch(self) -> None:
        # The end of the pipe, whole or in the middle of a frame, is the end of the parent: it closes it no earlier.
        try:
            self._orphaned = read_frame_blocking(self._commands, CONTROL_DECODER) is None
        except EngineError as error:
            _log.warning("the parent's pipe ends: %s", error)
            self._orphaned = True
        with self._lock:
            end = self._end
        end()
        if not self._ended.wait(GRACE_SECONDS):
            self._exit()

    def _parent_died(self, _signal: int, _frame: object) -> None:
        # The signal also comes when only the thread that started this process ends: then the parent is the same.
        if os.getppid() != self._start.parent_pid:
            self._orphaned = True
            self._end()

    def clean_up(self) -> None:
        """Remove the directory if nobody else is left to do it."""
        if self._orphaned:
            shutil.rmtree(self._start.directory, ignore_errors=True)

    def _exit(self) -> None:
        self.clean_up()
        os._exit(1)


def main(opener: Opener) -> int:
    """Run a worker; return the exit status."""
    bound_allocator()
    commands, reports = _take_pipes()
    start = read_frame_blocking(commands, CONTROL_DECODER)
    if not isinstance(start, Start):
        raise EngineError(f"expected Start, got {type(start).__name__}: this process is started by EngineProcess")
    configure_logging(start.log_level, start.log_format)
    line = _LifeLine(commands, start)
    directory = Path(start.directory)
    with Heartbeat(directory / HEARTBEAT_NAME) as heartbeat:
        try:
            opened = opener(start.options, lambda progress: _report_progress(reports, heartbeat, progress), heartbeat)
        except OpenAutoGLMError as error:
            _report(reports, Failed(error=error_to_wire(error)))
            return error.exit_code
        failure = asyncio.run(_serve(opened, directory, heartbeat, reports, line))
    line.clean_up()
    return 0 if failure is None else 1


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the two pipes to the parent from children of this process and from anything that prints."""
    commands, reports = os.dup(0), os.dup(1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return os.fdopen(commands, "rb"), os.fdopen(reports, "wb", buffering=0)


async def _serve(
    opened: Opened, directory: Path, heartbeat: Heartbeat, reports: BinaryIO, line: _LifeLine
) -> EngineError | None:
    """Serve until told to stop; return the error if the engine ended by itself."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    socket_path = directory / SOCKET_NAME
    server = EngineServer(opened.engine, opened.description, socket_path, heartbeat, memory=opened.memory)
    await server.start()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server.failed.add_done_callback(lambda _: stop.set())

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)

    line.serving(end)
    _report(reports, Ready(description=opened.description))
    await stop.wait()
    line.ended()
    failure = server.failed.result() if server.failed.done() else None
    await server.close()
    return failure


def _report_progress(reports: BinaryIO, heartbeat: Heartbeat, progress: Progress) -> None:
    heartbeat.beat()
    _report(reports, Loading(progress=progress))


def _report(reports: BinaryIO, frame: Frame) -> None:
    try:
        reports.write(encode_frame(frame))
    except BrokenPipeError:
        _log.warning("the parent does not listen any more")


def _open(options: EngineOptions, progress: ProgressCallback, heartbeat: Heartbeat) -> Opened:
    opened, _ = open_model(options, progress=progress, heartbeat=heartbeat)
    return opened


if __name__ == "__main__":
    sys.exit(main(_open))
