"""Plans and receipts for people (aligned plain text) and for programs (a dictionary for JSON)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openautoglm.planner.limits import MAX_COUNTED_CONCURRENCY
from openautoglm.spec.plan import BLOCK_TOKENS, Breakdown, Plan
from openautoglm.units import format_bytes

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What a loaded engine really took.

    `weight_bytes`, `kv_bytes` and `workspace_bytes` are the executor's own allocations, of which `untouched_bytes` have
    not been written yet; `runtime_bytes` is the process tree before loading; `resident_bytes` is the tree's
    proportional set size now, `peak_bytes` its largest so far.
    """

    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    untouched_bytes: int
    resident_bytes: int
    peak_bytes: int

    @property
    def accounted_bytes(self) -> int:
        """The sum of the components, as far as they are in memory."""
        allocated_bytes = self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.runtime_bytes
        return allocated_bytes - self.untouched_bytes

    @property
    def unaccounted_bytes(self) -> int:
        """Resident bytes that no component explains; negative where a component shrank after it was measured."""
        return self.resident_bytes - self.accounted_bytes


def plan_table(plan: Plan) -> str:
    """Return a plan as text: header, components, what would still fit, and why."""
    count = _billions(plan.num_parameters)
    if plan.num_active_parameters != plan.num_parameters:
        count += f", {_billions(plan.num_active_parameters)} active per token"
    lines = [f"plan for {plan.model} ({plan.family}, {count})", "", component_table(plan), ""]
    lines += _columns(
        [
            (f"  largest context at concurrency {plan.concurrency}", f"{plan.max_context_tokens:,} tokens"),
            (f"  largest concurrency at {plan.context_tokens:,} tokens", _at_most(plan.max_concurrency)),
        ]
    )
    if not plan.runnable:
        lines += ["", *(f"  not runnable yet: {feature}" for feature in plan.unsupported)]
    if plan.reasons:
        lines += ["", "why", *(f"  {reason}" for reason in plan.reasons)]
    return "\n".join(lines)


def component_table(plan: Plan) -> str:
    """Return the components of a plan with their settings and bytes, the total and the budget."""
    breakdown, formats = plan.breakdown, plan.formats
    tied = breakdown.embedding_weight_bytes == 0
    rows = [
        ("weights: layers", str(formats.layers), breakdown.layer_weight_bytes),
        ("weights: head and embeddings" if tied else "weights: head", str(formats.head), breakdown.head_weight_bytes),
        *([] if tied else [("weights: embeddings", str(formats.embedding), breakdown.embedding_weight_bytes)]),
        ("weights: norms and biases", "f32", breakdown.norm_bytes),
        (
            "KV cache",
            f"{formats.kv}, {plan.concurrency} x {plan.context_tokens:,} tokens, {plan.num_blocks:,} blocks",
            breakdown.kv_bytes,
        ),
        (
            "workspace",
            f"steps of {plan.max_step_tokens:,} tokens, {plan.max_step_rows} rows",
            breakdown.workspace_bytes,
        ),
        ("runtime", f"process, tokenizer, {plan.num_threads} threads", breakdown.runtime_bytes),
        ("predicted peak", "", breakdown.peak_bytes),
        ("headroom", "left free", breakdown.headroom_bytes),
        ("total", "", breakdown.total_bytes),
        ("budget", "", plan.budget_bytes),
        ("unused" if breakdown.total_bytes <= plan.budget_bytes else "short", "", _difference(plan)),
    ]
    cells = [(f"  {name}", settings, format_bytes(num_bytes)) for name, settings, num_bytes in rows]
    return "\n".join(_columns([("  component", "settings", "bytes"), *cells]))


def receipt_table(plan: Plan, measured: MeasuredMemory) -> str:
    """Return planned and measured bytes per component after loading, and the rest that no component explains."""
    planned = plan.breakdown
    rows = [
        ("weights", planned.weight_bytes, measured.weight_bytes),
        ("KV cache", planned.kv_bytes, measured.kv_bytes),
        ("workspace", planned.workspace_bytes, measured.workspace_bytes),
        ("runtime", planned.runtime_bytes, measured.runtime_bytes),
    ]
    cells = [
        (f"  {name}", format_bytes(plan_bytes), format_bytes(bytes_), _percent(bytes_, plan_bytes), "")
        for name, plan_bytes, bytes_ in rows
    ]
    cells.append(("  not touched yet", "", format_bytes(-measured.untouched_bytes), "", "of KV cache and workspace"))
    unaccounted = format_bytes(measured.unaccounted_bytes)
    cells.append(("  unaccounted", "", unaccounted, "", "resident, explained by no component"))
    for name, bytes_ in (("resident now", measured.resident_bytes), ("peak so far", measured.peak_bytes)):
        share = _percent(bytes_, planned.peak_bytes)
        cells.append((f"  {name}", format_bytes(planned.peak_bytes), format_bytes(bytes_), share, ""))
    return "\n".join(
        [f"receipt for {plan.model}", *_columns([("  component", "planned", "measured", "share", ""), *cells])]
    )


def plan_as_dict(plan: Plan) -> dict[str, object]:
    """Return a plan as plain values; the keys are stable, `schema_version` grows when one changes its meaning."""
    formats = plan.formats
    return {
        "schema_version": SCHEMA_VERSION,
        "model": plan.model,
        "family": plan.family,
        "fits": True,
        "runnable": plan.runnable,
        "unsupported": list(plan.unsupported),
        "num_parameters": plan.num_parameters,
        "num_active_parameters": plan.num_active_parameters,
        "formats": {
            "layers": str(formats.layers),
            "head": str(formats.head),
            "embedding": str(formats.embedding),
            "kv": str(formats.kv),
            "activations": str(formats.activations),
            "attention": str(formats.attention),
        },
        "context_tokens": plan.context_tokens,
        "max_context_tokens": plan.max_context_tokens,
        "concurrency": plan.concurrency,
        "max_concurrency": plan.max_concurrency,
        "num_blocks": plan.num_blocks,
        "block_tokens": BLOCK_TOKENS,
        "max_step_tokens": plan.max_step_tokens,
        "max_step_rows": plan.max_step_rows,
        "num_threads": plan.num_threads,
        "budget_bytes": plan.budget_bytes,
        "breakdown": breakdown_as_dict(plan.breakdown),
        "reasons": list(plan.reasons),
    }


def breakdown_as_dict(breakdown: Breakdown) -> dict[str, int]:
    """Return every component and the sums, in bytes."""
    return {
        "layer_weight_bytes": breakdown.layer_weight_bytes,
        "head_weight_bytes": breakdown.head_weight_bytes,
        "embedding_weight_bytes": breakdown.embedding_weight_bytes,
        "norm_bytes": breakdown.norm_bytes,
        "weight_bytes": breakdown.weight_bytes,
        "kv_bytes": breakdown.kv_bytes,
        "workspace_bytes": breakdown.workspace_bytes,
        "runtime_bytes": breakdown.runtime_bytes,
        "peak_bytes": breakdown.peak_bytes,
        "headroom_bytes": breakdown.headroom_bytes,
        "total_bytes": breakdown.total_bytes,
    }


def _step(plan: Plan) -> str:
    rows = f"{plan.max_step_rows} row{'s' * (plan.max_step_rows != 1)}"
    return f"steps of {plan.max_step_tokens:,} tokens, {rows}"


def _difference(plan: Plan) -> int:
    return abs(plan.budget_bytes - plan.breakdown.total_bytes)


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B parameters" if count >= 100_000_000 else f"{count / 1e6:.1f} M parameters"


def _at_most(count: int) -> str:
    return f"{count:,} sequences" + (" or more" if count == MAX_COUNTED_CONCURRENCY else "")


def _percent(measured_bytes: int, planned_bytes: int) -> str:
    return f"{100 * measured_bytes / planned_bytes:.1f} %" if planned_bytes else ""


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, others that hold figures to the right, settings to the left."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    left = [index == 0 or not any(_is_figure(row[index]) for row in cells) for index in range(len(widths))]
    return [
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_figure(cell: str) -> bool:
    return cell.endswith(("iB", " B", "%"))
