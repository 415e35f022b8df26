"""How many rejects under overload were needless: a simulation around the real engine, at several loads.

    python benchmarks/needless_rejects.py --requests 160 --seeds 3 --output benchmarks/results/needless_rejects.json

Prints, per load (of what the server can do) and pool: requests, rejects, needless ones, and their shares. Needless is
a reject when replaying the trace with that request admitted meets every deadline; "watched" counts the same where the
replay's engine knows the deadlines and reorders for them, "whole" where nobody else is left out of the trace (see
overload/simulator.py).
Everything is counted on a virtual clock: a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from overload.simulator import Server, capacity, judge
from overload.trace import TraceShape, make_trace

# Seconds of steps of glm-edge-1.5b at int4 on two cores, rounded from docs/log.md.
SERVERS = {
    "roomy": Server(
        num_blocks=2048, max_step_tokens=512, max_running=32, base_seconds=0.02, prompt_token_seconds=0.004,
        row_seconds=0.002,
    ),
    "tight": Server(
        num_blocks=160, max_step_tokens=512, max_running=32, base_seconds=0.02, prompt_token_seconds=0.004,
        row_seconds=0.002,
    ),
}  # fmt: skip
LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load."""

    server: str
    load: float
    num_requests: int
    num_rejects: int
    num_needless: int
    num_needless_watched: int
    num_needless_whole: int
    num_preemptions: int


def shape_of(server: Server, num_requests: int, requests_per_second: float, seed: int) -> TraceShape:
    busy = server.base_seconds + server.row_seconds * server.max_running / 2
    return TraceShape(
        num_requests=num_requests,
        requests_per_second=requests_per_second,
        prompt_tokens=(16, 384),
        answer_tokens=(8, 192),
        max_tokens=256,
        slack=(2.0, 8.0),
        busy_seconds_per_token=busy,
        prompt_seconds_per_token=server.prompt_token_seconds,
        seed=seed,
    )


def measure(name: str, load: float, num_requests: int, num_seeds: int) -> Row:
    server = SERVERS[name]
    sums = [0] * 6
    for seed in range(num_seeds):
        rate = capacity(server, make_trace(shape_of(server, num_requests, 1.0, seed)))
        verdict = judge(server, make_trace(shape_of(server, num_requests, load * rate, seed)))
        found = (
            verdict.num_requests,
            len(verdict.rejects),
            len(verdict.needless),
            len(verdict.needless_watched),
            len(verdict.needless_whole),
            verdict.num_preemptions,
        )
        sums = [total + value for total, value in zip(sums, found, strict=True)]
    return Row(
        server=name,
        load=load,
        num_requests=sums[0],
        num_rejects=sums[1],
        num_needless=sums[2],
        num_needless_watched=sums[3],
        num_needless_whole=sums[4],
        num_preemptions=sums[5],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=160, help="requests of one trace")
    parser.add_argument("--seeds", type=int, default=3, help="traces per load")
    parser.add_argument("--load", type=float, action="append", help="share of what the server can do")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("server  load  requests  rejects  needless  of requests  of rejects  watched  whole  preemptions")
    for name in SERVERS:
        for load in arguments.load or LOADS:
            row = measure(name, load, arguments.requests, arguments.seeds)
            rows.append(row)
            of_rejects = row.num_needless / row.num_rejects if row.num_rejects else 0.0
            print(
                f"{name:6}  {load:4.1f}  {row.num_requests:8}  {row.num_rejects:7}  {row.num_needless:8}  "
                f"{row.num_needless / row.num_requests:11.2%}  {of_rejects:10.2%}  {row.num_needless_watched:7}  "
                f"{row.num_needless_whole:5}  {row.num_preemptions:11}",
                flush=True,
            )
    total = sum(row.num_requests for row in rows)
    needless, watched = sum(row.num_needless for row in rows), sum(row.num_needless_watched for row in rows)
    whole = sum(row.num_needless_whole for row in rows)
    print(f"all: {needless} of {total} requests rejected needlessly, {needless / total:.2%}")
    print(f"in watched replays: {watched}, {watched / total:.2%}; in whole ones: {whole}, {whole / total:.2%}")
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
