"""Replaying a trace on an engine, real or simulated, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import ContextOverflowError, DeadlineError, InvalidRequestError, OverloadedError
from openautoglm.spec.trace import TraceRequest


@dataclass(slots=True, kw_only=True)
class Fate:
    """One request: its times on the replay's clock, and the kind of error it ended with, if any."""

    arrival_seconds: float
    token_seconds: list[float] = field(default_factory=list)
    end_seconds: float | None = None
    error: str | None = None

    @property
    def first_token_seconds(self) -> float | None:
        """From its arrival to its first token; None without one."""
        return self.token_seconds[0] - self.arrival_seconds if self.token_seconds else None


@dataclass(slots=True, kw_only=True)
class Replay:
    """What came of a trace; `seconds` is from the first arrival to the last end."""

    fates: list[Fate]
    seconds: float = 0.0
    num_preemptions: int = 0
    num_steps: int = 0
    most_running: int = 0
    most_waiting: int = 0

    @property
    def errors(self) -> Counter[str]:
        """How many requests ended with which error."""
        return Counter(fate.error for fate in self.fates if fate.error is not None)

    @property
    def ended(self) -> list[Fate]:
        """Those that were answered whole."""
        return [fate for fate in self.fates if fate.error is None]

    @property
    def output_tokens_per_second(self) -> float:
        """Tokens of whole answers per second."""
        return sum(len(fate.token_seconds) for fate in self.ended) / self.seconds if self.seconds else 0.0

    @property
    def first_token_seconds(self) -> list[float]:
        """Times to first tokens of whole answers."""
        return [seconds for fate in self.ended if (seconds := fate.first_token_seconds) is not None]

    @property
    def gaps_seconds(self) -> list[float]:
        """Times between two tokens of a stream, of all."""
        return [
            later - earlier
            for fate in self.ended
            for earlier, later in zip(fate.token_seconds, fate.token_seconds[1:], strict=False)
        ]


def replay(
    engine: Engine,
    trace: Sequence[TraceRequest],
    make_request: Callable[[int, TraceRequest], GenerationRequest],
    *,
    clock: Callable[[], float],
    wait_until: Callable[[float | None], None],
) -> Replay:
    """Run a trace, in the order of arrival, on an idle engine.

    `make_request` makes the request of an index, with the index as its id. `wait_until` lets time pass to a moment of
    `clock`, or, with None, a little. Requests come in on time, or as soon as the step that runs then has ended.
    """
    begin = clock()
    fates = [Fate(arrival_seconds=begin + request.arrival_seconds) for request in trace]
    result, position = Replay(fates=fates), 0
    while position < len(trace) or engine.has_work:
        if not engine.has_work:
            wait_until(fates[position].arrival_seconds)
        while position < len(trace) and fates[position].arrival_seconds <= clock():
            _add(engine, make_request(position, trace[position]), fates[position])
            position += 1
        before = engine.steps[0]
        events = engine.step()
        now = clock()
        for event in events:
            fate = fates[int(event.request_id)]
            fate.token_seconds.extend([now] * len(event.tokens))
            if event.finish_reason is not None:
                fate.end_seconds = now
                fate.error = (event.error_kind or "error") if event.finish_reason == "error" else None
        result.most_running = max(result.most_running, len(engine.scheduler.running))
        result.most_waiting = max(result.most_waiting, engine.scheduler.num_waiting)
        if engine.steps[0] == before and engine.has_work:
            wait_until(None)
    first_seconds = fates[0].arrival_seconds
    ends = [fate.end_seconds for fate in fates if fate.end_seconds is not None]
    result.seconds = max(ends, default=first_seconds) - first_seconds
    result.num_preemptions = engine.scheduler.num_preemptions
    result.num_steps = engine.steps[0]
    return result


def _add(engine: Engine, request: GenerationRequest, fate: Fate) -> None:
    try:
        engine.add(request)
    except (ContextOverflowError, DeadlineError, InvalidRequestError, OverloadedError) as error:
        fate.error = type(error).__name__
