"""The real engine and scheduler on a clock that a cost model advances, in place of a model.

A reject (a request refused, or one that has not ended by its deadline) is needless when replaying the trace with that
request admitted meets every deadline: its own, and those that were met. `whole` replays take that at its word: the
trace is played again as it was, with everybody in it, except that this one request is started when it comes up, or
before all others, whatever the engine thinks of it. Two further readings leave the other rejects out of the trace,
which takes away work that the server had to do: in plain ones the engine knows of no deadlines, nothing is held back or
given up, and what they need is seen on the clock; in `watched` ones it knows them, and may hold requests back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from openautoglm.bench.idle_executor import BLOCK_TOKENS, LetterTokenizer
from openautoglm.bench.simulator import END_TOKEN, IDLE_SECONDS, PricedExecutor, VirtualClock, unshared_prompt
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.request import Sequence as EngineSequence
from openautoglm.engine.scheduler import Verdict as GateVerdict
from openautoglm.errors import DeadlineError, OverloadedError
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.step_cost import StepCost
from overload.trace import Arrival

MOST_URGENT = -1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is simulated: sizes of an engine, and seconds of a step: base + prompt tokens + decoding rows."""

    num_blocks: int
    max_step_tokens: int
    max_running: int
    base_seconds: float
    prompt_token_seconds: float
    row_seconds: float

    @property
    def cost(self) -> StepCost:
        """What a step takes."""
        return StepCost(
            base_seconds=self.base_seconds, prompt_token_seconds=self.prompt_token_seconds, row_seconds=self.row_seconds
        )


@dataclass(slots=True, kw_only=True)
class Run:
    """What came of a trace: when each request ended, and why those that did not count."""

    end_seconds: dict[int, float] = field(default_factory=dict)
    rejects: dict[int, str] = field(default_factory=dict)
    num_preemptions: int = 0


def play(
    server: Server,
    trace: Sequence[Arrival],
    *,
    deadlines: bool = True,
    stop_at: Collection[int] = (),
    let_in: int | None = None,
    first: bool = False,
) -> Run:
    """Run a trace through a new engine. Without `deadlines` the engine knows of none.

    `let_in` is never held back or given up, with `first` it waits for nobody either. Ends as soon as one of `stop_at`
    is rejected.
    """
    clock = VirtualClock()
    executor = PricedExecutor(
        server.cost,
        clock,
        {one.index: one.answer_tokens for one in trace},
        num_blocks=server.num_blocks,
        max_step_tokens=server.max_step_tokens,
        max_step_rows=server.max_running,
    )
    engine = Engine(
        executor, LetterTokenizer(), eos_token_ids=(END_TOKEN,), context_tokens=server.num_blocks * BLOCK_TOKENS,
        max_running=server.max_running, max_queued=1 << 20, clock=clock,
    )  # fmt: skip
    if let_in is not None:
        _let_in(engine, str(let_in))
    due = {one.index: one.seconds + one.deadline_seconds for one in trace}
    run, position = Run(), 0
    while position < len(trace) or engine.has_work:
        if not engine.has_work:
            clock.now = max(clock.now, trace[position].seconds)
        while position < len(trace) and trace[position].seconds <= clock.now:
            ahead = first and trace[position].index == let_in
            _add(engine, trace[position], run, deadlines=deadlines, priority=MOST_URGENT if ahead else 0)
            position += 1
        before = clock.now
        for event in engine.step():
            if event.finish_reason is None:
                continue
            index = int(event.request_id)
            if event.finish_reason == "error":
                run.rejects[index] = event.error_kind or "error"
                continue
            run.end_seconds[index] = clock.now
            if clock.now > due[index]:
                run.rejects[index] = "late"
        if stop_at and not run.rejects.keys().isdisjoint(stop_at):
            return run
        if clock.now == before and engine.has_work:
            clock.now += IDLE_SECONDS
    run.num_preemptions = engine.scheduler.num_preemptions
    return run


def _let_in(engine: Engine, request_id: str) -> None:
    """Have an engine start one request when its turn comes, whatever its gate would say."""
    gate = engine._gate
    judge, hopeless = gate.judge, gate.hopeless

    def lenient(sequence: EngineSequence) -> GateVerdict:
        return GateVerdict.START if sequence.request.request_id == request_id else judge(sequence)

    gate.judge = lenient  # type: ignore[method-assign]
    gate.hopeless = lambda request, now: request.request_id != request_id and hopeless(request, now)  # type: ignore[method-assign]


def _add(engine: Engine, arrival: Arrival, run: Run, *, deadlines: bool, priority: int) -> None:
    request = GenerationRequest(
        request_id=str(arrival.index),
        prompt_tokens=unshared_prompt(arrival.index, arrival.prompt_tokens),
        sampling=SamplingParams(max_tokens=arrival.max_tokens, seed=arrival.index),
        priority=priority,
        deadline_seconds=arrival.deadline_seconds if deadlines else None,
    )
    try:
        engine.add(request)
    except (DeadlineError, OverloadedError) as error:
        run.rejects[arrival.index] = type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A trace's rejects, and which of them were needless."""

    num_requests: int
    rejects: Mapping[int, str]
    needless: tuple[int, ...]
    needless_watched: tuple[int, ...]
    needless_whole: tuple[int, ...]
    num_preemptions: int

    @property
    def needless_share(self) -> float:
        """Needless rejects, of all requests."""
        return len(self.needless) / self.num_requests


def judge(server: Server, trace: Sequence[Arrival]) -> Verdict:
    """Play a trace, then replay it for each reject."""
    run = play(server, trace)
    return Verdict(
        num_requests=len(trace),
        rejects=run.rejects,
        needless=needless_rejects(server, trace, run.rejects),
        needless_watched=needless_rejects(server, trace, run.rejects, watched=True),
        needless_whole=needless_in_whole(server, trace, run.rejects),
        num_preemptions=run.num_preemptions,
    )


def needless_rejects(
    server: Server, trace: Sequence[Arrival], rejects: Mapping[int, str], *, watched: bool = False
) -> tuple[int, ...]:
    """Return the rejects that could have been admitted with every deadline met."""
    found = []
    for index in rejects:
        admitted = [one for one in trace if one.index == index or one.index not in rejects]
        everybody = {one.index for one in admitted}
        if not play(server, admitted, deadlines=watched, stop_at=everybody).rejects:
            found.append(index)
    return tuple(found)


def needless_in_whole(server: Server, trace: Sequence[Arrival], rejects: Mapping[int, str]) -> tuple[int, ...]:
    """Return the rejects that could have been let in with nobody else made late, all the others asking as they did."""
    met = {one.index for one in trace} - rejects.keys()
    found = []
    for index in rejects:
        wanted = met | {index}
        again = (play(server, trace, stop_at=wanted, let_in=index, first=first) for first in (True, False))
        if any(run.rejects.keys().isdisjoint(wanted) for run in again):
            found.append(index)
    return tuple(found)


def capacity(server: Server, trace: Sequence[Arrival]) -> float:
    """Return requests per second that the server ends when all of a trace waits from the start."""
    together = [replace(one, seconds=0.0) for one in trace]
    run = play(server, together, deadlines=False)
    return len(trace) / max(run.end_seconds.values())


def goodput(server: Server, trace: Sequence[Arrival]) -> float:
    """Return the requests per second that end in time, until the last of them ends."""
    run = play(server, trace)
    good = [run.end_seconds[one.index] for one in trace if one.index not in run.rejects]
    return len(good) / max(good)
