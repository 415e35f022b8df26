"""Rounds as figures: medians, shares of the roofline, and ratios to the best peer in every round."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openautoglm.bench.roofline import Roofline
from openautoglm.spec.arch import ArchSpec
from peers.limits import decode_need, prefill_need
from peers.protocol import Job, Outcome, outcome_from_json
from peers.rounds import Contender, Round
from peers.variants import OURS, Variant

SLOWEST = "transformers float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A column: its name, its value in one outcome (larger is better), and the tokens of one measured step or prompt.

    `batch` is 0 for the prompt.
    """

    name: str
    batch: int
    value: Callable[[Outcome], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one of ours stands to the best peer of each round, among peers of equal bits or to a named one."""

    variant: str
    figure: str
    against: str
    best_peer: str
    median_ratio: float
    least_ratio: float


def figures(job: Job) -> tuple[Figure, ...]:
    """Return the speeds, in tokens per second: a prompt's median repetition, and all decoding steps of a batch."""

    def prefill(outcome: Outcome) -> float:
        return job.prefill_tokens / statistics.median(outcome.prefill_seconds)

    def decode(batch: int) -> Callable[[Outcome], float]:
        return lambda outcome: batch * len(outcome.decode_step_seconds[batch]) / sum(outcome.decode_step_seconds[batch])

    prompt = Figure(name=f"prefill {job.prefill_tokens}", batch=0, value=prefill)
    batches = (Figure(name=f"decode, batch {batch}", batch=batch, value=decode(batch)) for batch in job.decode_batches)
    return (prompt, *batches)


def over_rounds(rounds: Sequence[Round], name: str, value: Callable[[Outcome], float]) -> list[float]:
    """Return a value of every round in which a variant ran."""
    return [value(one.outcomes[name]) for one in rounds if name in one.outcomes]


def shares(rounds: Sequence[Round], variant: Variant, figure: Figure, spec: ArchSpec, job: Job) -> list[float]:
    """Return T_min / T of each round, with that round's own limits."""
    if figure.batch == 0:
        need, num_tokens = prefill_need(spec, variant.bits, job), job.prefill_tokens
    else:
        need, num_tokens = decode_need(spec, variant.bits, job, figure.batch), figure.batch
    return [
        need.least_seconds(one.roofline) / (num_tokens / figure.value(one.outcomes[variant.name]))
        for one in rounds
        if variant.name in one.outcomes
    ]


def compare(rounds: Sequence[Round], variants: Sequence[Variant], job: Job) -> list[Comparison]:
    """Compare each of ours with the best peer of equal bits, with the best peer of all, and with the slowest one."""
    found = []
    for ours in (variant for variant in variants if variant.engine == OURS):
        peers = [variant for variant in variants if variant.engine != OURS]
        groups = {f"peers of {ours.klass}": [peer.name for peer in peers if peer.klass == ours.klass]}
        if not ours.is_limited:
            groups["all peers"] = [peer.name for peer in peers if not peer.is_limited]
            groups[SLOWEST] = [peer.name for peer in peers if peer.name == SLOWEST]
        for against, names in groups.items():
            found += [
                comparison
                for figure in figures(job)
                if (comparison := _compare(rounds, ours.name, figure, against, names)) is not None
            ]
    return found


def _compare(
    rounds: Sequence[Round], ours: str, figure: Figure, against: str, peers: Sequence[str]
) -> Comparison | None:
    ratios, winners = [], []
    for one in rounds:
        values = {name: figure.value(one.outcomes[name]) for name in peers if name in one.outcomes}
        if values and ours in one.outcomes:
            best = max(values, key=lambda name: values[name])
            winners.append(best)
            ratios.append(figure.value(one.outcomes[ours]) / values[best])
    if not ratios:
        return None
    return Comparison(
        variant=ours,
        figure=figure.name,
        against=against,
        best_peer=statistics.mode(winners),
        median_ratio=statistics.median(ratios),
        least_ratio=min(ratios),
    )


def summary(
    rounds: Sequence[Round], contenders: Sequence[Contender], spec: ArchSpec, job: Job
) -> dict[str, dict[str, object]]:
    """Return, by variant, versions, settings, and medians over the rounds."""
    rows: dict[str, dict[str, object]] = {}
    for variant in (contender.variant for contender in contenders):
        outcomes = [one.outcomes[variant.name] for one in rounds if variant.name in one.outcomes]
        if not outcomes:
            continue
        speeds = {
            figure.name: {
                "tokens_per_second": statistics.median(over_rounds(rounds, variant.name, figure.value)),
                "tokens_per_second_by_round": over_rounds(rounds, variant.name, figure.value),
                "roofline_share": statistics.median(shares(rounds, variant, figure, spec, job)),
            }
            for figure in figures(job)
        }
        rows[variant.name] = {
            "engine": variant.engine,
            "class": variant.klass,
            "versions": dict(outcomes[0].versions),
            "options": dict(variant.options),
            "bits_per_weight": asdict(variant.bits),
            "speeds": speeds,
            "others_busy_cores": max(one.others_busy_cores.get(variant.name, 0.0) for one in rounds),
            "load_seconds": statistics.median(outcome.load_seconds for outcome in outcomes),
            "peak_pss_bytes": statistics.median(outcome.memory.peak_pss_bytes for outcome in outcomes),
        }
    return rows


def raw_rounds(rounds: Sequence[Round]) -> list[Mapping[str, object]]:
    """Return the rounds as plain values: every measured second."""
    return [
        {
            "roofline": asdict(one.roofline),
            "others_busy_cores": one.others_busy_cores,
            "outcomes": {name: asdict(outcome) for name, outcome in one.outcomes.items()},
        }
        for one in rounds
    ]


def rounds_from_raw(raw: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Return the rounds that `raw_rounds` made plain, as JSON gives them back."""
    return [
        Round(
            roofline=Roofline(**one["roofline"]),
            outcomes={name: outcome_from_json(json.dumps(outcome)) for name, outcome in one["outcomes"].items()},
            others_busy_cores=one["others_busy_cores"],
        )
        for one in raw
    ]
