"""A bench report: everything measured in one run, as a table and as a dictionary for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from openautoglm.bench.measure import Measurement
from openautoglm.bench.roofline import Roofline
from openautoglm.planner.explain import plan_as_dict
from openautoglm.planner.receipt import MeasuredMemory
from openautoglm.spec.plan import Plan
from openautoglm.units import format_bytes

SCHEMA_VERSION = 1
_TITLES = {"prefill": "prefill {size} tokens", "decode": "decode, batch {size}", "first_token": "first token of {size}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One run: the plan that was loaded, the machine's limits around it, speeds and memory."""

    plan: Plan
    processor: str
    roofline: Roofline
    load_seconds: float
    measurements: tuple[Measurement, ...]
    memory: MeasuredMemory


def report_table(report: BenchReport) -> str:
    """Return the report as aligned text."""
    roofline, plan = report.roofline, report.plan
    lines = [
        f"bench of {plan.model}: weights {plan.formats.layers}, head {plan.formats.head}, KV {plan.formats.kv}, "
        f"{roofline.num_threads} threads, {roofline.isa} on {report.processor}",
        f"machine: {roofline.int8_operations_per_second / 1e9:,.0f} GOPS int8, "
        f"{roofline.bf16_operations_per_second / 1e9:,.0f} GFLOPS bf16, "
        f"{roofline.read_bytes_per_second / 1e9:.1f} GB/s read over 2 MB pages, "
        f"{roofline.small_page_read_bytes_per_second / 1e9:.1f} over 4 KB pages",
        "",
    ]
    rows = [("", "tokens/s", "ms", "fastest ms", "weights at", "roofline")]
    rows += [
        (
            _TITLES[one.kind].format(size=one.size),
            f"{one.tokens_per_second:,.1f}" if one.kind != "first_token" else "",
            f"{1000 * one.seconds:,.2f}",
            f"{1000 * one.fastest_seconds:,.2f}",
            "" if one.read_bytes_per_second is None else f"{one.read_bytes_per_second / 1e9:.1f} GB/s",
            f"{100 * one.roofline_share(roofline):.0f} %",
        )
        for one in report.measurements
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(6)]
    lines += ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6))]) for row in rows]
    if any(one.roofline_share(roofline) > 1 for one in report.measurements):
        lines += ["", "shares above 100 %: this model is small enough to be read from the processor's caches"]
    memory = report.memory
    return "\n".join(
        [
            *lines,
            "",
            f"load {report.load_seconds:.2f} s; peak memory {format_bytes(memory.peak_bytes)}, planned "
            f"{format_bytes(plan.breakdown.peak_bytes)}; weights {format_bytes(memory.weight_bytes)}, KV pool "
            f"{format_bytes(memory.kv_bytes)}, unaccounted {format_bytes(memory.unaccounted_bytes)}",
        ]
    )


def report_as_dict(report: BenchReport) -> dict[str, object]:
    """Return the report as plain values with units in the names."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report.plan.model,
        "processor": report.processor,
        "roofline": asdict(report.roofline),
        "load_seconds": report.load_seconds,
        "measurements": [
            {
                "kind": one.kind,
                "size": one.size,
                "seconds": one.seconds,
                "fastest_seconds": one.fastest_seconds,
                "tokens_per_second": one.tokens_per_second,
                "least_seconds": one.least_seconds(report.roofline),
                "read_bytes_per_second": one.read_bytes_per_second,
                "roofline_share": one.roofline_share(report.roofline),
                "work": asdict(one.work),
            }
            for one in report.measurements
        ],
        "memory": {**asdict(report.memory), "unaccounted_bytes": report.memory.unaccounted_bytes},
        "plan": plan_as_dict(report.plan),
    }
