"""The report for people: Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from openautoglm.units import MIB
from peers.protocol import WARM_TOKENS, Job
from peers.report import Comparison, figures
from peers.rounds import Round

GIGA = 1e9


def markdown(
    heading: Mapping[str, str],
    rows: Mapping[str, Mapping[str, object]],
    comparisons: Sequence[Comparison],
    rounds: Sequence[Round],
    job: Job,
    failures: Mapping[str, str],
) -> str:
    """Return the whole report."""
    lines = [
        f"# {heading['shape']} beside other engines",
        "",
        f"{heading['date']}, {heading['processor']}, {job.num_threads} threads, {len(rounds)} interleaved rounds, "
        f"medians; random weights. {heading['note']}".rstrip(),
        "",
        *_limits(rounds),
        "",
        f"Tokens per second, and in brackets the share of the roofline. Prefill: {job.prefill_tokens} tokens up to the "
        f"first one. Decode: prompts of {job.decode_prompt_tokens} tokens, {job.decode_new_tokens} new ones, greedy. "
        f"Load: from files in the page cache to the first token of {WARM_TOKENS} (openautoglm quantises the bf16 "
        "checkpoint then; peers read converted files). Peak PSS includes file pages. Others: "
        "the most cores that other processes took on average in a round; above 0.1 the row says little.",
        "",
        *_speeds(rows, job),
        "",
        "Ratios of openautoglm to the best peer of each round:",
        "",
        *_ratios(comparisons),
        "",
        "Versions and settings:",
        "",
        *_settings(rows),
    ]
    if failures:
        lines += ["", "Left out:", "", *(f"- {name}: {reason}" for name, reason in failures.items())]
    return "\n".join(lines) + "\n"


def _limits(rounds: Sequence[Round]) -> list[str]:
    def spread(values: Sequence[float], digits: int = 0) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"

    limits = [one.roofline for one in rounds]
    return [
        "The machine, median of rounds (range): "
        f"{spread([one.int8_operations_per_second / GIGA for one in limits])} GOPS int8, "
        f"{spread([one.bf16_operations_per_second / GIGA for one in limits])} GFLOPS bf16, "
        f"{spread([one.read_bytes_per_second / GIGA for one in limits], 1)} GB/s over 2 MB pages, "
        f"{spread([one.small_page_read_bytes_per_second / GIGA for one in limits], 1)} over 4 KB pages.",
    ]


def _speeds(rows: Mapping[str, Mapping[str, object]], job: Job) -> list[str]:
    names = [figure.name for figure in figures(job)]
    lines = [
        f"| engine | {' | '.join(names)} | load, s | peak PSS, MiB | others, cores |",
        f"|---|{'---|' * (len(names) + 3)}",
    ]
    for name, row in rows.items():
        speeds = row["speeds"]
        assert isinstance(speeds, dict)
        cells = [
            f"{speeds[figure]['tokens_per_second']:,.1f} ({100 * speeds[figure]['roofline_share']:.0f} %)"
            for figure in names
        ]
        load, peak, others = (float(str(row[key])) for key in ("load_seconds", "peak_pss_bytes", "others_busy_cores"))
        lines.append(f"| {name} | {' | '.join(cells)} | {load:.1f} | {peak / MIB:,.0f} | {others:.2f} |")
    return lines


def _ratios(comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        "| openautoglm | figure | against | best one | median | least of a round |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.variant.partition(' ')[2]} | {one.figure} | {one.against} | {one.best_peer} "
        f"| {one.median_ratio:.2f} | {one.least_ratio:.2f} |"
        for one in comparisons
    ]
    return lines


def _settings(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = []
    for name, row in rows.items():
        versions, options, bits = row["versions"], row["options"], row["bits_per_weight"]
        assert isinstance(versions, dict)
        assert isinstance(options, dict)
        assert isinstance(bits, dict)
        parts = [f"{package} {version}" for package, version in versions.items()]
        parts += [f"{option}={value}" for option, value in options.items()]
        parts.append(f"{bits['layers']:g} bits per weight, head {bits['head']:g}, KV {bits['kv']:g}")
        lines.append(f"- {name}: {'; '.join(parts)}")
    return lines
