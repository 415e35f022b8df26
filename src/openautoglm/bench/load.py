"""A load test: requests that are sent when they are due, or by clients that ask one after the other.

Open loop: a request is sent at its time whatever became of those before it, and its times count from then on. A server
that stalls meets everything that arrives meanwhile, as it would in service; a client that waited for answers would
leave out just the requests that the stall would have hurt ("coordinated omission"). Closed loop: each of N clients asks
again when it has its answer, which finds what a server can do, and flatters its times.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openautoglm.bench.ask import Asker
from openautoglm.bench.connections import Connections
from openautoglm.bench.endpoint import Endpoint
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.patience import Patience
from openautoglm.spec.trace import TraceRequest

# A client that was refused asks again as soon as it is told to, within these bounds.
LEAST_PAUSE_SECONDS = 0.1
MOST_PAUSE_SECONDS = 5.0
_HEAD_START_SECONDS = 0.05  # until the loop is ready for what is due at once

_Send = Callable[[int, TraceRequest, float], Coroutine[Any, Any, Outcome]]


@dataclass(slots=True, kw_only=True)
class LoadRun:
    """A load test and what came of it so far; complete when it ends by itself.

    `num_clients` None: an open loop. `processor_seconds` are the client's own.
    """

    endpoint: Endpoint
    traffic: Sequence[TraceRequest]
    num_clients: int | None
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every request has ended."""
        return len(self.outcomes) == len(self.traffic)


async def run_load(
    run: LoadRun, patience: Patience, *, seed: int = 0, on_outcome: Callable[[Outcome], None] = lambda _outcome: None
) -> None:
    """Send the traffic and fill in `run`; `on_outcome` hears of each end. What has come stays if this is cancelled."""
    _allow_connections(len(run.traffic) if run.num_clients is None else run.num_clients)
    begin, used = time.perf_counter(), time.process_time()
    try:
        async with Connections(run.endpoint, patience) as connections:
            asker = Asker(connections, run.endpoint, patience, seed=seed, begin=begin + _HEAD_START_SECONDS)

            async def one(index: int, request: TraceRequest, due_seconds: float) -> Outcome:
                outcome = await asker.ask(index, request, due_seconds=due_seconds)
                run.outcomes.append(outcome)
                on_outcome(outcome)
                return outcome

            if run.num_clients is None:
                await _open_loop(run.traffic, asker, one)
            else:
                await _closed_loop(run.traffic, run.num_clients, asker, one)
    finally:
        run.seconds = time.perf_counter() - begin - _HEAD_START_SECONDS
        run.processor_seconds = time.process_time() - used


async def _open_loop(traffic: Sequence[TraceRequest], asker: Asker, one: _Send) -> None:
    async with asyncio.TaskGroup() as group:
        for index, request in enumerate(traffic):
            await asyncio.sleep(max(0.0, request.arrival_seconds - asker.now()))
            group.create_task(one(index, request, request.arrival_seconds))


async def _closed_loop(traffic: Sequence[TraceRequest], num_clients: int, asker: Asker, one: _Send) -> None:
    left = iter(enumerate(traffic))

    async def client(requests: Iterator[tuple[int, TraceRequest]]) -> None:
        for index, request in requests:
            outcome = await one(index, request, max(0.0, asker.now()))
            if outcome.error is not None:
                pause = outcome.retry_after_seconds or LEAST_PAUSE_SECONDS
                await asyncio.sleep(min(max(pause, LEAST_PAUSE_SECONDS), MOST_PAUSE_SECONDS))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(num_clients, len(traffic))):
            group.create_task(client(left))


def _allow_connections(num_connections: int) -> None:
    """Raise this process's limit of open files as far as it may, if that many connections could meet it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + len(list(Path("/proc/self/fd").iterdir())) + 64
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
