"""`EngineProcess`: an engine in a process of its own, and the private directory where the two meet."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from openautoglm.engine.client import EngineDescription
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.life import LifeWatch
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.remote import SocketEngineClient
from openautoglm.engine.wire import (
    REPORT_DECODER,
    Failed,
    Frame,
    Loading,
    Ready,
    ReportFrame,
    Start,
    Stop,
    encode_frame,
    error_from_wire,
    read_frame_blocking,
)
from openautoglm.errors import EngineError
from openautoglm.log import ROOT_LOGGER_NAME, configured_format, get_logger
from openautoglm.progress import ProgressCallback

SOCKET_NAME = "engine.sock"
HEARTBEAT_NAME = "heartbeat"
# sockaddr_un holds 108 bytes with the closing zero (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
WORKER_COMMAND = (sys.executable, "-m", "openautoglm.engine.worker")
STALLED_SECONDS = 120.0


class EngineProcess:
    """Starts, watches and stops one worker. `start` may be called again after the worker has ended.

    The directory has mode 0700; it holds the socket (0600) and the heartbeat, and goes when this object is closed.
    The worker ends with this process, however this one ends.
    """

    def __init__(self, options: EngineOptions, *, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._options = options
        self._command = tuple(command)
        self._directory = _private_directory()
        self._heartbeat = Heartbeat(self._directory / HEARTBEAT_NAME, create=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._life: LifeWatch | None = None
        # Who closes must not be overtaken by a thread that starts a worker.
        self._lock = threading.Lock()
        self._closed = False
        self.socket_path = self._directory / SOCKET_NAME

    @property
    def pid(self) -> int | None:
        """The worker's process id; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def heartbeat(self) -> int:
        """The worker's counter: while it loads, steps or idles, it grows."""
        return self._heartbeat.value

    def stalled(self) -> str | None:
        """Return why the started worker counts as stalled, None while it does not; ask every second or more often."""
        return None if self._life is None else self._life.look()

    def client(self, *, max_unread_bytes: int | None = None) -> SocketEngineClient:
        """Return a new client of the engine; see `SocketEngineClient`."""
        return SocketEngineClient(self.socket_path, max_unread_bytes=max_unread_bytes)

    def start(
        self, *, progress: ProgressCallback | None = None, stalled_seconds: float = STALLED_SECONDS
    ) -> EngineDescription:
        """Start the worker and wait until it accepts clients, relaying its progress.

        Raises what made the load fail (the worker's own error), or `EngineError` when the worker ended without a word
        or gave no sign of life for `stalled_seconds`.
        """
        if self.alive:
            raise EngineError("the engine process runs already: stop it first")
        self.kill()
        with self._lock:
            if self._closed:
                raise EngineError("the engine process is closed: make a new one")
            process = self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            level = logging.getLevelName(get_logger(ROOT_LOGGER_NAME).getEffectiveLevel())
            self._send(
                Start(
                    options=self._options,
                    directory=str(self._directory),
                    parent_pid=os.getpid(),
                    log_level=level.lower(),
                    log_format=configured_format(),
                )
            )
            description = self._await_ready(process, progress, stalled_seconds)
            self._life = LifeWatch(process.pid, lambda: self.heartbeat)
            return description
        except BaseException:
            self.kill()
            raise

    def stop(self, *, grace_seconds: float = 10.0) -> int | None:
        """End the worker in good order, or by force after `grace_seconds`; return its exit status."""
        process = self._process
        if process is None:
            return None
        # One that still loads has nothing to finish.
        if process.poll() is None and self._life is not None:
            self._send(Stop())
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(1.0)
                except subprocess.TimeoutExpired:
                    process.kill()
        self.kill()
        return process.returncode

    def kill(self) -> None:
        """End the worker at once, also one that is stopped, and leave nothing of it: no process, no pipe, no socket."""
        self._life = None
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close_pipe(pipe)
        self.socket_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the worker, also while it loads, and remove the directory; safe to call twice, and from any thread."""
        with self._lock:
            self._closed = True
        self.stop()
        self._heartbeat.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> EngineProcess:
        """Return itself, not started."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _await_ready(
        self, process: subprocess.Popen[bytes], progress: ProgressCallback | None, stalled_seconds: float
    ) -> EngineDescription:
        assert process.stdout is not None
        # msgpack frames arrive on a pipe; a thread reads it so that a silent worker can be noticed.
        reports: queue.SimpleQueue[ReportFrame | EngineError | None] = queue.SimpleQueue()
        stdout = process.stdout
        threading.Thread(target=_read_reports, args=(stdout, reports), daemon=True).start()
        # Its heart beats with every slice that it loads; waiting for a network or another process shows nowhere.
        life = LifeWatch(process.pid, lambda: self.heartbeat, silent_seconds=stalled_seconds)
        while True:
            try:
                report = reports.get(timeout=min(1.0, stalled_seconds))
            except queue.Empty:
                if (reason := life.look()) is not None:
                    raise EngineError(f"the engine process {reason} while loading: see its log above") from None
                continue
            match report:
                case Loading(progress=news):
                    if progress is not None:
                        progress(news)
                case Ready(description=description):
                    return description
                case Failed(error=wire):
                    raise error_from_wire(wire)
                case EngineError():
                    raise report
                case None:
                    status = process.wait()
                    raise EngineError(f"the engine process ended while loading ({_exit_text(status)}): see its log")

    def _send(self, frame: Frame) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode_frame(frame))
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has just ended, which whoever waits for it will see


def _read_reports(stdout: IO[bytes], reports: queue.SimpleQueue[ReportFrame | EngineError | None]) -> None:
    report: ReportFrame | None = None
    try:
        while not isinstance(report, Ready | Failed):
            report = read_frame_blocking(stdout, REPORT_DECODER)
            reports.put(report)
            if report is None:
                return
    except (EngineError, ValueError, OSError) as error:
        reports.put(error if isinstance(error, EngineError) else EngineError(f"the engine's pipe failed: {error}"))


def _close_pipe(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # what was still to be flushed has no reader


def _exit_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _private_directory() -> Path:
    """Make a directory of mode 0700 whose path leaves room for a socket's name."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it private
        if len(os.fsencode(parent)) + len("/openautoglm-xxxxxxxx/") + len(SOCKET_NAME) <= MAX_SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="openautoglm-", dir=parent))
    raise EngineError("no directory for the engine's socket: set TMPDIR to a short path that can be written")
