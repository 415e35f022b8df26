"""Runs every variant once a round, in processes of their own, with the machine's limits measured around each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from openautoglm.bench.roofline import Roofline, best_of, measure_roofline
from peers.artifacts import artifact, worker_variables
from peers.environments import ENVIRONMENTS, InstallError, interpreter
from peers.neighbours import Neighbours
from peers.protocol import Job, Outcome, outcome_from_json
from peers.shapes import Shape
from peers.variants import Variant

WORKER_SECONDS = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A variant that is ready to run."""

    variant: Variant
    python: Path
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass over all variants. `others_busy_cores`: what other processes took beside each, 0 on a quiet machine."""

    roofline: Roofline
    outcomes: dict[str, Outcome]
    others_busy_cores: dict[str, float]


def prepare(variants: Sequence[Variant], shape: Shape, job: Job, cache: Path) -> tuple[list[Contender], dict[str, str]]:
    """Install and convert; return what is ready, and the reasons why the others are not."""
    ready, failures = [], {}
    for variant in variants:
        try:
            named = ENVIRONMENTS.get(variant.environment)
            python = Path(sys.executable) if named is None else interpreter(named, cache)
            model = artifact(variant.artifact, shape, cache, job.num_threads)
        except InstallError as error:
            failures[variant.name] = str(error)
            print(f"{variant.name} left out: {error}", file=sys.stderr)
            continue
        mine = replace(job, model=str(model), options=dict(variant.options))
        ready.append(Contender(variant=variant, python=python, job=mine))
    return ready, failures


def run_round(contenders: Sequence[Contender], index: int, failures: dict[str, str]) -> Iterator[Round]:
    """Run each contender once, starting with another one each round; who fails is noted in `failures` and left out.

    Yields the round as it grows, so that a run that is cut short has its figures.
    """
    num_threads = contenders[0].job.num_threads
    limits = [measure_roofline(num_threads)]
    outcomes: dict[str, Outcome] = {}
    others: dict[str, float] = {}
    start = index % len(contenders)
    for contender in [*contenders[start:], *contenders[:start]]:
        name = contender.variant.name
        if name in failures:
            continue
        neighbours = Neighbours()
        answer = _run(contender)
        others[name] = neighbours.busy_cores()
        if isinstance(answer, str):
            failures[name] = answer
            print(f"{name} failed: {answer}", file=sys.stderr)
        else:
            outcomes[name] = answer
            print(f"round {index + 1}: {_line(name, answer)}; others {others[name]:.2f} cores", file=sys.stderr)
        limits.append(measure_roofline(num_threads))
        yield Round(roofline=best_of(*limits), outcomes=dict(outcomes), others_busy_cores=dict(others))


def _run(contender: Contender) -> Outcome | str:
    """Return what was measured, or the last words of a worker that failed."""
    module = f"peers.workers.{contender.variant.worker}"
    command = [str(contender.python), "-m", module, json.dumps(asdict(contender.job))]
    variables = worker_variables(contender.job.num_threads) | dict(contender.variant.variables)
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=variables, timeout=WORKER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {WORKER_SECONDS} s"
    if done.returncode != 0:
        return " / ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
    return outcome_from_json(done.stdout)


def _line(name: str, outcome: Outcome) -> str:
    job = ", ".join(
        f"batch {batch} {batch * len(steps) / sum(steps):.1f}" for batch, steps in outcome.decode_step_seconds.items()
    )
    prefill = sorted(outcome.prefill_seconds)[len(outcome.prefill_seconds) // 2]
    return f"{name}: prompt {prefill:.2f} s, {job} tokens/s, load {outcome.load_seconds:.1f} s"
