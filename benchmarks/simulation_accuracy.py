"""How near a simulation comes to a real run: the same trace on the engine with a model, in real time, and simulated.

    PYTHONPATH=src python benchmarks/simulation_accuracy.py [--model demo] [--loads 0.4 0.8] [--output FILE]

The model's steps are measured first, as `openautoglm simulate` does; then each trace is replayed for real, and then on
the simulator's clock. Prints throughput and times to first tokens of both, and errors. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from openautoglm.bench.calibrate import calibrate
from openautoglm.bench.replay import Replay, replay
from openautoglm.bench.simulator import SimulatedServer, simulate
from openautoglm.bench.traffic import Arrivals, TrafficShape, draw_traffic, parse_lengths
from openautoglm.engine.assemble import OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.options import EngineOptions
from openautoglm.spec.goal import Goal
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.scheduling import PLAIN_SCHEDULING
from openautoglm.spec.trace import TraceRequest

SHAPE = TrafficShape(
    num_requests=100,
    requests_per_second=1.0,
    arrivals=Arrivals.POISSON,
    prompt_tokens=parse_lengths("log:32-700"),
    output_tokens=parse_lengths("log:16-128"),
    deadline_seconds=None,
    seed=5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load (of what the simulation can do at most): measured and predicted figures."""

    load: float
    num_requests: int
    seconds: float
    predicted_seconds: float
    tokens_per_second: float
    predicted_tokens_per_second: float
    ttft_mean_seconds: float
    predicted_ttft_mean_seconds: float
    ttft_p50_seconds: float
    predicted_ttft_p50_seconds: float
    ttft_p90_seconds: float
    predicted_ttft_p90_seconds: float

    def errors(self) -> dict[str, float]:
        """Return the relative error of each prediction."""
        values = asdict(self)
        names = ("tokens_per_second", "ttft_mean_seconds", "ttft_p50_seconds", "ttft_p90_seconds")
        return {name: values[f"predicted_{name}"] / values[name] - 1 for name in names}


def run_for_real(opened: OpenedEngine, trace: tuple[TraceRequest, ...]) -> Replay:
    random = np.random.default_rng(0)
    vocab_size = opened.description.vocab_size

    def request(index: int, wanted: TraceRequest) -> GenerationRequest:
        return GenerationRequest(
            request_id=str(index),
            prompt_tokens=tuple(random.integers(10, vocab_size, wanted.prompt_tokens).tolist()),
            sampling=SamplingParams(max_tokens=wanted.output_tokens, seed=index, ignore_eos=True),
        )

    def wait_until(seconds: float | None) -> None:
        left = 0.001 if seconds is None else seconds - time.monotonic()
        if left > 0:
            time.sleep(left)

    return replay(opened.engine, trace, request, clock=time.monotonic, wait_until=wait_until)


def compare(opened: OpenedEngine, server: SimulatedServer, load: float, most_rate: float) -> Row:
    trace = draw_traffic(replace(SHAPE, requests_per_second=load * most_rate))
    real = run_for_real(opened, trace)
    simulated = simulate(server, trace, scheduling=PLAIN_SCHEDULING)
    figures: dict[str, float] = {}
    for prefix, result in (("", real), ("predicted_", simulated)):
        assert not result.errors, result.errors
        first = np.array(result.first_token_seconds)
        figures |= {
            f"{prefix}seconds": result.seconds,
            f"{prefix}tokens_per_second": result.output_tokens_per_second,
            f"{prefix}ttft_mean_seconds": float(first.mean()),
            f"{prefix}ttft_p50_seconds": float(np.percentile(first, 50)),
            f"{prefix}ttft_p90_seconds": float(np.percentile(first, 90)),
        }
    return Row(load=load, num_requests=len(trace), **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.8, 2.0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    goal = Goal(context_tokens=1024, concurrency=16)
    opened = open_engine(prepare(EngineOptions(model=arguments.model, goal=goal), to_run=True))
    rows: list[Row] = []
    try:
        server = calibrate(opened.engine, opened.executor.layout(), model=arguments.model)
        together = draw_traffic(replace(SHAPE, requests_per_second=None))
        most_rate = SHAPE.num_requests / simulate(server, together, scheduling=PLAIN_SCHEDULING).seconds
        for load in arguments.loads:
            row = compare(opened, server, load, most_rate)
            rows.append(row)
            print(
                f"load {load:4.2f}: {row.seconds:6.2f} s, {row.tokens_per_second:7.1f} tokens/s (predicted "
                f"{row.predicted_tokens_per_second:7.1f}), ttft mean {row.ttft_mean_seconds * 1e3:7.1f} ms "
                f"({row.predicted_ttft_mean_seconds * 1e3:7.1f}); errors "
                + ", ".join(f"{name} {error:+.1%}" for name, error in row.errors().items()),
                flush=True,
            )
    finally:
        opened.engine.close()
    if arguments.output:
        document = [asdict(row) | {"errors": row.errors()} for row in rows]
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
