"""Pairs of runs as figures, and the figures as JSON and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ablated.comparisons import Comparison, Pair
from ablated.run import Run, mean_median_late
from openautoglm.units import MIB

Outputs = Sequence[Sequence[int]]
# Latencies of a run, by the names of the report; smaller is better.
LATENCIES: dict[str, Callable[[Run], float]] = {
    "first token, mean": lambda run: mean_median_late(run.first_token_seconds)[0],
    "first token, median": lambda run: mean_median_late(run.first_token_seconds)[1],
    "first token, p95": lambda run: mean_median_late(run.first_token_seconds)[2],
    "between tokens, mean": lambda run: mean_median_late(run.token_gap_seconds)[0],
    "between tokens, median": lambda run: mean_median_late(run.token_gap_seconds)[1],
    "between tokens, p95": lambda run: mean_median_late(run.token_gap_seconds)[2],
    "whole workload": lambda run: run.seconds,
}
ADDED_COLUMNS = ("first token, mean", "between tokens, mean", "between tokens, median", "whole workload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A value of every round: median, least and most."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two sides' outputs differ, position by position."""

    num_tokens: int
    num_different_tokens: int
    num_requests: int
    num_equal_requests: int
    median_equal_beginning: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range."""
    return Spread(median=statistics.median(values), least=min(values), most=max(values))


def added_shares(pairs: Sequence[Pair], latency: Callable[[Run], float]) -> Spread:
    """Return on / off - 1 of every round; 0 where there is nothing to compare."""
    return spread([latency(pair.on) / latency(pair.off) - 1.0 if latency(pair.off) else 0.0 for pair in pairs])


def saved_share(on_bytes: int, off_bytes: int) -> float:
    """Return the share of `off_bytes` that is not needed."""
    return 1.0 - on_bytes / off_bytes


def difference(on: Outputs, off: Outputs) -> Difference:
    """Compare answers of equal lengths."""
    unequal = [[a != b for a, b in zip(one, other, strict=True)] for one, other in zip(on, off, strict=True)]
    beginnings = [flags.index(True) if any(flags) else len(flags) for flags in unequal]
    return Difference(
        num_tokens=sum(map(len, unequal)),
        num_different_tokens=sum(map(sum, unequal)),
        num_requests=len(unequal),
        num_equal_requests=sum(not any(flags) for flags in unequal),
        median_equal_beginning=statistics.median(beginnings),
    )


def summary(comparisons: Sequence[Comparison], rounds: Mapping[str, Sequence[Pair]]) -> dict[str, dict[str, object]]:
    """Return the figures of every comparison that has run; those of memory are equal in all rounds."""
    return {one.name: _row(one, rounds[one.name]) for one in comparisons if one.name in rounds}


def _row(comparison: Comparison, pairs: Sequence[Pair]) -> dict[str, object]:
    last = pairs[-1]
    return {
        "claim": None if comparison.claim is None else asdict(comparison.claim),
        "workload": comparison.workload,
        "equal_memory": comparison.tight,
        "saved_share": saved_share(last.on.peak_bytes, last.off.peak_bytes),
        "added_shares": {name: asdict(added_shares(pairs, latency)) for name, latency in LATENCIES.items()},
        "outputs": asdict(difference(last.on.outputs, last.off.outputs)),
        "off": _side([pair.off for pair in pairs]),
        "on": _side([pair.on for pair in pairs]),
    }


def _side(runs: Sequence[Run]) -> dict[str, object]:
    last = runs[-1]
    seconds = {name: [latency(run) for run in runs] for name, latency in LATENCIES.items()}
    return {
        "pool_bytes": last.num_pool_blocks * last.block_bytes,
        "peak_bytes": last.peak_bytes,
        "answer_bytes": last.high_water.answer_blocks * last.block_bytes,
        "request_bytes": last.high_water.request_blocks * last.block_bytes,
        "context_bytes": last.high_water.context_blocks * last.block_bytes,
        "resident_bytes": max(run.resident_bytes for run in runs),
        "mean_running": last.high_water.mean_running,
        "prefix_hit_tokens": last.prefix_hit_tokens,
        "num_preemptions": last.num_preemptions,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "tokens_per_second": statistics.median(run.tokens_per_second for run in runs),
        "others_busy_cores": max(run.others_busy_cores for run in runs),
        "rounds_seconds": seconds,
    }


def markdown(heading: Sequence[str], rows: Mapping[str, Mapping[str, object]]) -> str:
    """Return the whole report."""
    lines = ["# Ablation: paging, prefix reuse, KV quantisation", "", *heading, ""]
    lines += [*_differences(rows), "", *_EXPLANATION, "", *_sides(rows), "", *_reservations(rows), ""]
    lines += ["Outputs:", "", *_outputs(rows)]
    return "\n".join(lines) + "\n"


_EXPLANATION = (
    "Saved: of the blocks that the same requests need at once (live blocks, shared ones counted once; cached prefixes "
    "can be evicted and do not count). Added: on / off - 1 in each round, median (least to most); a minus is time "
    "saved. Equal memory: the pool of both sides has the blocks that paging needed without a limit, and requests wait "
    "for room. Without paging a request holds one contiguous range for its prompt and all tokens that it may ask for; "
    "attention still goes through a block table, so the table itself is not ablated. What paging saves hangs on how "
    "far answers fall short of max_tokens, what prefix reuse saves on how much prompts share: both are choices of "
    "this workload. The claims are others' and name neither workload nor kind of latency, so they stand beside these "
    "figures without being the same quantities.",
)


def _differences(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    names = [f"{name}, added" for name in ADDED_COLUMNS]
    lines = [
        f"| feature | KV memory saved | claimed elsewhere | {' | '.join(names)} | claimed elsewhere |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    for name, row in rows.items():
        claim, added = row["claim"], row["added_shares"]
        assert isinstance(added, dict)
        assert isinstance(claim, dict | None)
        saved = "equal by design" if row["equal_memory"] else f"{100 * float(str(row['saved_share'])):.0f} %"
        shares = [_percent(added[column]) for column in ADDED_COLUMNS]
        claims = ("", "") if claim is None else (f"{claim['saved_percent']} %", f"{claim['added_percent']} %")
        lines.append(f"| {' | '.join([name, saved, claims[0], *shares, claims[1]])} |")
    return lines


def _percent(share: Mapping[str, float]) -> str:
    median, least, most = (100 * share[key] for key in ("median", "least", "most"))
    return f"{median:+.1f} % ({least:+.1f} to {most:+.1f})"


def _sides(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = [
        "Medians of the rounds; milliseconds as mean / median / 95th percentile. Resident: what the system gave to the "
        "pool during the run, cached prefixes and the rounding to pages included. Others: the most cores that other "
        "processes took in a round; above 0.1 the times say little.",
        "",
        "| feature | | pool, MiB | needed at once | resident | running | first token, ms | between tokens, ms "
        "| tokens/s | reused tokens | preempted | others, cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for which in ("off", "on"):
            side = row[which]
            assert isinstance(side, dict)
            seconds = side["seconds"]
            times = [
                " / ".join(f"{1e3 * seconds[f'{kind}, {part}']:,.1f}" for part in ("mean", "median", "p95"))
                for kind in ("first token", "between tokens")
            ]
            kinds = ("pool_bytes", "peak_bytes", "resident_bytes")
            cells = [name, which, *(f"{side[kind] / MIB:,.1f}" for kind in kinds)]
            cells += [f"{side['mean_running']:.1f}", *times, f"{side['tokens_per_second']:,.1f}"]
            cells += [f"{side['prefix_hit_tokens']:,}", str(side["num_preemptions"])]
            lines.append(f"| {' | '.join(cells)} | {side['others_busy_cores']:.2f} |")
    return lines


def _reservations(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = [
        "What contiguous ranges would hold for the sequences that ran with the feature on, MiB at the worst moment, "
        "and what the blocks that were needed save of it:",
        "",
        "| feature | needed | prompt and answer (known to nobody) | prompt and max_tokens | the whole context |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        side = row["on"]
        assert isinstance(side, dict)
        needed = side["peak_bytes"]
        cells = [
            f"{reserved / MIB:,.1f} ({100 * saved_share(needed, reserved):.0f} %)"
            for reserved in (side["answer_bytes"], side["request_bytes"], side["context_bytes"])
        ]
        lines.append(f"| {' | '.join([name, f'{needed / MIB:,.1f}', *cells])} |")
    return lines


def _outputs(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = []
    for name, row in rows.items():
        found = row["outputs"]
        assert isinstance(found, dict)
        if not found["num_different_tokens"]:
            lines.append(f"- {name}: all {found['num_tokens']:,} tokens equal, on and off, in every round")
            continue
        lines.append(
            f"- {name}: {found['num_different_tokens']:,} of {found['num_tokens']:,} tokens differ at their position; "
            f"{found['num_equal_requests']} of {found['num_requests']} answers are equal, and half of the answers for "
            f"their first {found['median_equal_beginning']:g} tokens or more. Greedy answers go their own way after "
            "one difference: benchmarks/format_quality.py has the divergence per token"
        )
    return lines
