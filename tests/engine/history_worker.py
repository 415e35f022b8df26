"""A worker whose model is the `HistoryExecutor`; the name of the model says how it behaves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from openautoglm.engine.client import EngineDescription
from openautoglm.engine.engine import Engine
from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.worker import main
from openautoglm.errors import DoesNotFitError, EngineError
from openautoglm.executor.protocol import StepBatch
from openautoglm.progress import Progress, ProgressCallback
from tests.engine.history_executor import HistoryExecutor, make_engine


@dataclass(frozen=True)
class Opened:
    engine: Engine
    description: EngineDescription
    memory: None = None


def slow(_: StepBatch) -> None:
    time.sleep(0.002)


def dies(batch: StepBatch) -> None:
    slow(batch)
    if int(batch.positions.max()) > 20:
        os._exit(9)


def fails(batch: StepBatch) -> None:
    if int(batch.positions.max()) > 20:
        raise EngineError("the device is gone")


STEPS: dict[str, Callable[[StepBatch], None]] = {"slow": slow, "dies": dies, "fails": fails}


def open_history(options: EngineOptions, progress: ProgressCallback, heartbeat: Heartbeat) -> Opened:
    model = options.model
    print("this must not disturb the reports")
    for done in (1, 2):
        progress(Progress(stage="load", done_bytes=done, total_bytes=2))
    if model == "does not fit":
        raise DoesNotFitError("too big", suggestions=("--memory 1TiB",))
    if model == "crashes":
        os._exit(7)
    if model == "hangs":
        time.sleep(600)
    if model == "beats":
        for _ in range(70):
            time.sleep(0.05)
            heartbeat.beat()
    engine = make_engine(HistoryExecutor(64, fail=STEPS.get(model)), max_queued=options.max_queued)
    description = EngineDescription(
        model=model,
        fingerprint=str(os.getpid()),
        context_tokens=512,
        vocab_size=101,
        max_running_requests=8,
        max_queued_requests=options.max_queued,
        plan_table="-",
    )
    return Opened(engine, description)


if __name__ == "__main__":
    sys.exit(main(open_history))
