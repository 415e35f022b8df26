"""Whether the step budget that follows a latency target is as good as the best fixed one: traffic of several shapes on
the real scheduler, with step times that the budget's cost model cannot express, and noise.

    PYTHONPATH=src python benchmarks/step_budget.py [--output FILE]

For each shape and target, every fixed budget is run too. The best is the one of most output tokens per second among
those whose 99th percentile of time between tokens meets the target. Prints both and the ratio; a virtual clock, so a
busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from openautoglm.bench.replay import Replay
from openautoglm.bench.simulator import SimulatedServer, simulate
from openautoglm.bench.step_table import StepTable
from openautoglm.bench.traffic import Arrivals, TrafficShape, draw_traffic, parse_lengths
from openautoglm.spec.scheduling import PLAIN_SCHEDULING, SchedulingOptions
from openautoglm.spec.step_cost import StepLoad
from openautoglm.spec.trace import TraceRequest

# A 1.5b at int4 on two cores: flat up to 8 tokens, as weights are read; then arithmetic.
TABLE = StepTable(
    tokens=(1, 8, 16, 32, 64, 512),
    token_seconds=(0.020, 0.028, 0.060, 0.115, 0.225, 1.75),
    row_seconds=0.0008,
    key_seconds=2e-6,
    pair_seconds=4e-7,
)
NOISE = 0.04  # standard deviation of a step's time, as a share
FIXED = (24, 32, 48, 64, 96, 128, 192, 256, 512)
TARGETS = (0.15, 0.3, 0.6)
SHAPES = {
    "chat": ("log:64-512", "log:32-256", 3.0),
    "long prompts": ("log:512-3000", "log:32-128", 1.0),
    "short answers": ("log:64-512", "log:4-32", 5.0),
}
MAX_RUNNING = 16


class NoisyTable:
    """The table with noise drawn anew for each step."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def seconds(self, load: StepLoad) -> float:
        """Return what a step takes this time."""
        return TABLE.seconds(load) * max(0.5, 1 + NOISE * float(self._random.standard_normal()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape and target: the budget that follows it, and the best fixed one (0 tokens: none meets it)."""

    shape: str
    target_seconds: float
    itl_p99_seconds: float
    tokens_per_second: float
    ttft_mean_seconds: float
    best_fixed_tokens: int
    best_fixed_tokens_per_second: float
    best_fixed_itl_p99_seconds: float

    @property
    def ratio(self) -> float:
        """Throughput beside the best fixed budget's."""
        if not self.best_fixed_tokens_per_second:
            return 1.0
        return self.tokens_per_second / self.best_fixed_tokens_per_second


def run(trace: tuple[TraceRequest, ...], max_step_tokens: int, scheduling: SchedulingOptions) -> Replay:
    server = SimulatedServer(
        model="benchmark",
        context_tokens=4096,
        num_blocks=8192,
        max_step_tokens=max_step_tokens,
        max_step_rows=MAX_RUNNING,
        steps=TABLE,
    )
    return simulate(server, trace, scheduling=scheduling, max_queued=1 << 20, price=NoisyTable(1))


def p99(result: Replay) -> float:
    return float(np.percentile(result.gaps_seconds, 99))


def measure(name: str, num_requests: int) -> list[Row]:
    prompts, answers, rate = SHAPES[name]
    trace = draw_traffic(
        TrafficShape(
            num_requests=num_requests,
            requests_per_second=rate,
            arrivals=Arrivals.POISSON,
            prompt_tokens=parse_lengths(prompts),
            output_tokens=parse_lengths(answers),
            deadline_seconds=None,
            seed=3,
        )
    )
    fixed = {tokens: run(trace, tokens, PLAIN_SCHEDULING) for tokens in FIXED}
    rows = []
    for target in TARGETS:
        found = run(trace, max(FIXED), SchedulingOptions(itl_seconds=target))
        meeting = [tokens for tokens, result in fixed.items() if p99(result) <= target]
        best = max(meeting, key=lambda tokens: fixed[tokens].output_tokens_per_second, default=0)
        rows.append(
            Row(
                shape=name,
                target_seconds=target,
                itl_p99_seconds=p99(found),
                tokens_per_second=found.output_tokens_per_second,
                ttft_mean_seconds=float(np.mean(found.first_token_seconds)),
                best_fixed_tokens=best,
                best_fixed_tokens_per_second=fixed[best].output_tokens_per_second if best else 0.0,
                best_fixed_itl_p99_seconds=p99(fixed[best]) if best else 0.0,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=250, help="requests of one trace")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    print("shape          target  itl p99  tokens/s  ttft mean  best fixed  its p99  its tokens/s  ratio")
    for name in SHAPES:
        for row in measure(name, arguments.requests):
            rows.append(row)
            print(
                f"{name:14} {row.target_seconds:6.2f}  {row.itl_p99_seconds:7.3f}  {row.tokens_per_second:8.1f}  "
                f"{row.ttft_mean_seconds:9.2f}  {row.best_fixed_tokens or 'none':>10}  "
                f"{row.best_fixed_itl_p99_seconds:7.3f}  {row.best_fixed_tokens_per_second:12.1f}  {row.ratio:5.3f}",
                flush=True,
            )
    met = [row for row in rows if row.itl_p99_seconds <= row.target_seconds]
    print(f"target met in {len(met)} of {len(rows)}; least ratio {min(row.ratio for row in rows):.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
