"""`EngineRunner`: the one thread that calls an `Engine`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from openautoglm.engine.calls import Call
from openautoglm.engine.client import EngineStatus, GenerationEvent
from openautoglm.engine.engine import Engine
from openautoglm.engine.record import MemoryReport, WatchdogReport
from openautoglm.engine.watch import EngineMemory, MemoryWatch
from openautoglm.engine.watchdog import Watchdog
from openautoglm.errors import EngineError
from openautoglm.log import get_logger

_log = get_logger(__name__)
_Result = TypeVar("_Result")

IDLE_SECONDS = 0.5


class EngineRunner:
    """Steps the engine while it has work, and runs calls between steps.

    `deliver` gets every step's events and `fail` the error that ended the engine, both in this object's thread;
    they must be quick and must not raise. `beat` is called once per turn, idle or not; `rest` once when work has ended
    and none came since for IDLE_SECONDS. With `memory`, a second thread looks at memory and lets the ladder act between
    steps, and a third watches for growth that nothing accounts for. Every other method is safe from any thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        deliver: Callable[[Sequence[GenerationEvent]], None],
        fail: Callable[[EngineError], None],
        beat: Callable[[], None] = lambda: None,
        rest: Callable[[], None] = lambda: None,
        memory: EngineMemory | None = None,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._fail = fail
        self._beat = beat
        self._rest = rest
        self._worked = False
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended: EngineError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="openautoglm-engine", daemon=True)
        self._watch = None if memory is None else MemoryWatch(memory.ladder, memory.probe, self._call_soon)
        self._watchdog = None if memory is None else self._make_watchdog(memory)

    def start(self) -> None:
        """Start the thread, and those that watch memory."""
        self._thread.start()
        if self._watch is not None:
            self._watch.start()
        if self._watchdog is not None:
            self._watchdog.start()

    def memory(self, budget_bytes: int | None = None) -> Future[MemoryReport]:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first.

        The future raises `InvalidRequestError` for a budget that cannot be, `EngineError` without a ladder.
        """
        watch = self._watch

        def report(_engine: Engine) -> MemoryReport:
            if watch is None:
                raise EngineError("this engine was opened without a memory ladder: there is nothing to report")
            return watch.report(budget_bytes)

        return self.call(report)

    def report(self, *, trace: bool | None = None) -> WatchdogReport:
        """Return a report of this process's memory; waits for the engine, and takes a moment. See `Watchdog.report`."""
        if self._watchdog is None:
            raise EngineError("this engine was opened without a memory ladder: there is nothing to report")
        return self._watchdog.report(trace=trace)

    def _make_watchdog(self, memory: EngineMemory) -> Watchdog:
        return Watchdog(
            "engine",
            lambda: self.call(lambda _engine: memory.accounts()).result(),
            memory.files,
            memory.watchdog,
            budget=lambda: self.memory().result(),
            trace=memory.trace,
        )

    def _call_soon(self, function: Callable[[], None]) -> Future[None]:
        return self.call(lambda _engine: function())

    def call(self, function: Callable[[Engine], _Result]) -> Future[_Result]:
        """Run `function` between two steps; the future raises what it raises, or `EngineError` if the engine ended."""
        call = Call(lambda: function(self._engine))
        with self._lock:
            if self._ended is not None:
                call.future.set_exception(self._ended)
            else:
                self._calls.put(call)
        return call.future

    def status(self, *, heartbeat: int) -> EngineStatus:
        """Return counters and gauges at once, in the middle of a step too; raise `EngineError` if the engine ended."""
        if self._ended is not None:
            raise EngineError(str(self._ended))
        status = self._engine.status(heartbeat=heartbeat)
        if self._watch is not None:
            status = self._watch.complete(status)
        return status if self._watchdog is None else self._watchdog.complete(status)

    def close(self) -> None:
        """Stop after the current step, end what runs with `EngineError`, and close the engine; safe to call twice."""
        if self._watch is not None:
            self._watch.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._closing = True
        self._calls.put(lambda: None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        error = EngineError("the engine was closed: start a new one")
        try:
            while not self._closing:
                self._turn()
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            _log.exception("the engine failed")
            error = EngineError(f"the engine failed: {failure}")
        self._end(error)

    def _turn(self) -> None:
        engine = self._engine
        self._beat()
        engine.sessions.expire()
        self._run_calls(wait=not engine.has_work)
        if engine.has_work:
            self._worked = True
            events = engine.step()
            if events:
                self._deliver(events)

    def _run_calls(self, *, wait: bool) -> None:
        try:
            while True:
                call = self._calls.get(timeout=IDLE_SECONDS) if wait else self._calls.get_nowait()
                call()
                wait = False
        except queue.Empty:
            if wait and self._worked:
                self._worked = False
                self._rest()

    def _end(self, error: EngineError) -> None:
        """From here on every call fails; those that wait are ended."""
        with self._lock:
            self._ended = error
        self._fail(error)
        self._run_calls(wait=False)
        self._engine.close()
