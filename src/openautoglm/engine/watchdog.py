"""`Watchdog`: notices memory that grows beyond what a process has accounted for, and writes down where it is.

    every `look_seconds`      accounts -> window of samples -> rule broken? -> report to a file, window begins anew
    on request                report, to a file and to whoever asked

One thread of its own, which sleeps; a look asks the accounts' owner once. Nothing is done per step.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from openautoglm.engine.client import EngineStatus
from openautoglm.engine.record import MemoryReport, WatchdogReport
from openautoglm.engine.report_files import ReportFiles
from openautoglm.errors import EngineError, InvalidRequestError, OutOfMemoryError
from openautoglm.log import get_logger
from openautoglm.memory.allocations import LOOK_SECONDS as TRACE_LOOK_SECONDS
from openautoglm.memory.allocations import TRACE_BYTES, AllocationTrace
from openautoglm.memory.growth import Growth, GrowthSample, GrowthWindow
from openautoglm.probe.mappings import probe_mappings
from openautoglm.probe.native_heap import probe_native_heap
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.watchdog import WatchdogOptions
from openautoglm.units import format_bytes

_log = get_logger(__name__)

LOOK_SECONDS = 15.0
NUM_TYPES = 25
REQUESTED = "request"
REASONS = ("growth", "slope", REQUESTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """What a process takes and what it knows of that, at one moment.

    `private_bytes` are anonymous and shared memory. `measured` parts are exact, `charged` ones are the most that what
    is under way may take. `ledger_bytes` is what the plan grants the process altogether.
    """

    private_bytes: int
    measured: Mapping[str, int]
    charged: Mapping[str, int]
    ledger_bytes: int

    @property
    def other_bytes(self) -> int:
        """What takes memory beside the measured parts."""
        return self.private_bytes - sum(self.measured.values())

    @property
    def uncharged_bytes(self) -> int:
        """What of that nothing under way was charged; negative while charges are far above what is taken."""
        return self.other_bytes - sum(self.charged.values())


class Watchdog:
    """Watches this process; its methods are safe from any thread.

    `accounts` and `budget` may wait for the thread that owns what they tell of, and raise `EngineError` once that has
    ended. `trace` follows allocations while somebody wants it.
    """

    def __init__(
        self,
        process: str,
        accounts: Callable[[], Accounts],
        files: ReportFiles,
        options: WatchdogOptions,
        *,
        budget: Callable[[], MemoryReport | None] = lambda: None,
        trace: AllocationTrace | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._process = process
        self._accounts = accounts
        self._budget = budget
        self._files = files
        self._enabled = options.enabled
        self._clock = clock
        self._look_seconds = look_seconds
        self._window = GrowthWindow(slope_bytes_per_minute=options.slope_bytes_per_minute)
        self._reporting = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="openautoglm-watchdog", daemon=True)
        self._trace = AllocationTrace(clock=clock) if trace is None else trace

    @property
    def num_reports(self) -> dict[str, int]:
        """Reports made so far, by reason."""
        return {reason: self._counts[reason] for reason in REASONS}

    @property
    def num_unwritten(self) -> int:
        """Reports that could not be written to a file."""
        return self._files.num_failed

    def complete(self, status: EngineStatus) -> EngineStatus:
        """Return a status with the reports counted."""
        return msgspec.structs.replace(
            status, memory_reports=self.num_reports, num_unwritten_reports=self.num_unwritten
        )

    def start(self) -> None:
        """Start the thread, unless there is nothing to look for."""
        if self._enabled:
            self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread: at the longest as long as a report takes."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._trace.stop()

    def look(self) -> WatchdogReport | None:
        """Take a sample; return the report if a rule is broken now."""
        accounts = self._accounts()
        # Tracing takes memory of its own, on request.
        uncharged_bytes = accounts.uncharged_bytes - (TRACE_BYTES if self._trace.running else 0)
        self._window.add(
            GrowthSample(seconds=self._clock(), other_bytes=accounts.other_bytes, uncharged_bytes=uncharged_bytes)
        )
        _log.debug(
            "the %s process takes %s beside what is measured, %s uncharged",
            self._process, format_bytes(accounts.other_bytes), format_bytes(accounts.uncharged_bytes),
        )  # fmt: skip
        growth = self._window.judge(accounts.ledger_bytes)
        if growth is None or growth.rule is None:
            return None
        self._window.clear()
        report = self._report(growth.rule, growth)
        _log.warning(
            "memory of the %s process grew by %s in %.0f s beyond what is accounted for (%s per minute): report %s",
            self._process,
            format_bytes(growth.grown_bytes),
            growth.seconds,
            format_bytes(int(growth.bytes_per_minute)),
            report.file or "not written",
        )
        return report

    def report(self, *, trace: bool | None = None) -> WatchdogReport:
        """Return a report now, written to a file too; `trace` starts following allocations before it, or ends it after.

        Raises `EngineError` if what it tells of has ended, `InvalidRequestError` where there is no room for tracing.
        """
        if trace:
            self._start_trace()
        report = self._report(REQUESTED, None)
        if trace is False:
            self._trace.stop()
        return report

    def _start_trace(self) -> None:
        try:
            self._trace.start()
        except OutOfMemoryError as error:
            raise InvalidRequestError(
                f"tracing takes memory that the budget has not: {error}; or start the server with more --memory, or "
                "with a smaller --context",
                param="trace",
            ) from error
        with self._reporting:
            if not self._enabled and not self._thread.is_alive() and not self._stopped:
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        next_seconds = self._clock()
        while not self._stopped:
            tracing = self._trace.running
            self._wake.wait(TRACE_LOOK_SECONDS if tracing else max(0.0, next_seconds - self._clock()))
            self._wake.clear()
            try:
                self._trace.look()
                if self._stopped or self._clock() < next_seconds:
                    continue
                next_seconds = self._clock() + self._look_seconds
                if self._enabled:
                    self.look()
            except (EngineError, OSError, MemoryError) as error:
                _log.debug("no look at memory: %s", error)

    def _report(self, reason: str, growth: Growth | None) -> WatchdogReport:
        with self._reporting:
            accounts = self._accounts()
            report = WatchdogReport(
                process=self._process,
                pid=os.getpid(),
                time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                reason=reason,
                growth=growth,
                memory=measure_process_memory(descendants=False),
                ledger_bytes=accounts.ledger_bytes,
                measured=dict(accounts.measured),
                charged=dict(accounts.charged),
                other_bytes=accounts.other_bytes,
                uncharged_bytes=accounts.uncharged_bytes,
                heap=probe_native_heap(),
                mappings=probe_mappings(),
                objects=_frequent_types(),
                traced=self._trace.lines(),
                budget=self._budget(),
            )
            self._counts[reason] += 1
            file = self._files.write(report)
            return msgspec.structs.replace(report, file=None if file is None else str(file))


def _frequent_types() -> dict[str, int]:
    """Return the types that most of the tracked objects have. Peak bytes: 8 per object."""
    counts = Counter(map(type, gc.get_objects()))
    return {f"{kind.__module__}.{kind.__qualname__}"[:120]: number for kind, number in counts.most_common(NUM_TYPES)}
