"""`MemoryWatch`: looks at memory beside the engine's thread, and calls the ladder when there is something to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from openautoglm.engine.client import EngineStatus
from openautoglm.engine.ladder import Ladder
from openautoglm.engine.record import MemoryReport
from openautoglm.engine.report_files import ReportFiles
from openautoglm.engine.watchdog import Accounts
from openautoglm.log import get_logger
from openautoglm.memory.allocations import AllocationTrace
from openautoglm.memory.pressure import Trend, byte_level
from openautoglm.probe.pressure import PressureProbe
from openautoglm.spec.pressure import Rung
from openautoglm.spec.watchdog import WatchdogOptions

_log = get_logger(__name__)

CALM_SECONDS = 0.1
# Under pressure another process may take hundreds of MiB in a tenth of a second.
TENSE_SECONDS = 0.02
MAX_HORIZON_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """The ladder of an engine and the probe that looks for it, and what its watchdog goes by.

    `accounts` is for the engine's thread, between two steps.
    """

    ladder: Ladder
    probe: PressureProbe
    accounts: Callable[[], Accounts]
    watchdog: WatchdogOptions
    files: ReportFiles
    trace: AllocationTrace


class MemoryWatch:
    """A thread that samples every CALM_SECONDS, every TENSE_SECONDS while a rung holds.

    `call` runs a function in the engine's thread between two steps. An engine in a long step gets one call, not many,
    and that sees the newest look. As the ladder can act only when a step has ended, looks are projected that far: by
    what others have lately been taking.
    """

    def __init__(
        self, ladder: Ladder, probe: PressureProbe, call: Callable[[Callable[[], None]], Future[None]]
    ) -> None:
        self.ladder = ladder
        self._probe = probe
        self._call = call
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openautoglm-memory", daemon=True)
        self.signals = probe.sample(ladder.budget_bytes)
        self._projected = self.signals
        self._trend = Trend()
        self._steps = ladder.steps()
        self._step_seconds = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and wait for the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def complete(self, status: EngineStatus) -> EngineStatus:
        """Return a status with what is known of memory."""
        ladder, signals = self.ladder, self.signals
        return msgspec.structs.replace(
            status,
            budget_bytes=ladder.budget_bytes,
            tree_bytes=signals.tree_bytes,
            rung=int(ladder.rung),
            rung_transitions=ladder.transition_labels(),
            byte_pressure=byte_level(signals),
            memory=self.report(),
        )

    def report(self, budget_bytes: int | None = None) -> MemoryReport:
        """Return budget, usage and ladder; with `budget_bytes`, announce a new budget first, between two steps.

        Raises `InvalidRequestError` for a budget that cannot be.
        """
        if budget_bytes is not None:
            self.ladder.set_budget(budget_bytes)
        return self.ladder.report(self.signals)

    def _run(self) -> None:
        pending: Future[None] | None = None
        while not self._stopped.wait(CALM_SECONDS if self.ladder.rung is Rung.NONE else TENSE_SECONDS):
            try:
                signals = self.signals = self._probe.sample(self.ladder.budget_bytes)
            except OSError as error:
                _log.warning("memory cannot be watched now: %s", error)
                continue
            self._projected = self._trend.project(signals, time.monotonic(), self._horizon_seconds())
            if (pending is None or pending.done()) and self.ladder.wants(self._projected):
                pending = self._call(self._tick)

    def _tick(self) -> None:
        self.ladder.tick(self._projected)

    def _horizon_seconds(self) -> float:
        """Return how long it may take until the ladder has acted: the step under way and one more, and a look."""
        (before, seconds_before), (num_steps, seconds) = self._steps, self.ladder.steps()
        if num_steps > before:
            self._step_seconds = (seconds - seconds_before) / (num_steps - before)
            self._steps = num_steps, seconds
        return min(CALM_SECONDS + 2 * self._step_seconds, MAX_HORIZON_SECONDS)
