"""What a replay of a trace came to, as a table and as a dictionary for JSON."""

from __future__ import annotations

from collections.abc import Sequence

from openautoglm.bench.replay import Fate, Replay
from openautoglm.bench.spread import Spread, spread_lines, spread_of
from openautoglm.spec.scheduling import Queue, queue_of
from openautoglm.spec.trace import TraceRequest

SCHEMA_VERSION = 1


def replay_table(run: Replay, trace: Sequence[TraceRequest], *, model: str) -> str:
    """Return the figures as aligned text."""
    lines = [
        f"simulation of {model}: {len(trace)} requests in {run.seconds:.2f} s of its clock, {run.num_steps} steps",
        f"answered    {len(run.ended)}, {len(run.ended) / run.seconds if run.seconds else 0.0:.3g} requests/s, "
        f"{run.output_tokens_per_second:.1f} tokens/s out",
        f"at most     {run.most_running} running, {run.most_waiting} waiting; {run.num_preemptions} set back",
        "",
        *spread_lines(_spreads(run, trace)),
    ]
    if run.errors:
        lines += ["", "failed:"]
        lines += [f"  {count:6}  {name}" for name, count in run.errors.most_common()]
    return "\n".join(lines)


def replay_as_dict(run: Replay, trace: Sequence[TraceRequest], *, model: str) -> dict[str, object]:
    """Return the figures as plain values with units in the names."""
    names = {"time to first token": "ttft", "between tokens": "itl", "whole answer": "e2e"}
    spreads = dict(_spreads(run, trace))
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "requests": len(trace),
        "answered": len(run.ended),
        "errors": dict(run.errors),
        "seconds": run.seconds,
        "steps": run.num_steps,
        "requests_per_second": len(run.ended) / run.seconds if run.seconds else 0.0,
        "output_tokens_per_second": run.output_tokens_per_second,
        "most_running": run.most_running,
        "most_waiting": run.most_waiting,
        "preemptions": run.num_preemptions,
        **{f"{short}_seconds": _as_dict(spreads[name]) for name, short in names.items()},
        "queues": {
            queue.label: _as_dict(spread_of(fate.first_token_seconds for fate in _of_queue(run, trace, queue)))
            for queue in Queue
        },
    }


def _spreads(run: Replay, trace: Sequence[TraceRequest]) -> list[tuple[str, Spread | None]]:
    """Return the spreads by name; of first tokens for each queue too, where there are several."""
    found = [("time to first token", spread_of(run.first_token_seconds))]
    used = {queue_of(request.priority) for request in trace}
    if len(used) > 1:
        found += [
            (f"  queue {queue.label}", spread_of(fate.first_token_seconds for fate in _of_queue(run, trace, queue)))
            for queue in Queue
            if queue in used
        ]
    whole = [None if fate.end_seconds is None else fate.end_seconds - fate.arrival_seconds for fate in run.ended]
    return [*found, ("between tokens", spread_of(run.gaps_seconds)), ("whole answer", spread_of(whole))]


def _of_queue(run: Replay, trace: Sequence[TraceRequest], queue: Queue) -> list[Fate]:
    return [
        fate
        for fate, request in zip(run.fates, trace, strict=True)
        if fate.error is None and queue_of(request.priority) is queue
    ]


def _as_dict(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else spread.as_dict()
