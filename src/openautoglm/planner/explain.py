"""Plans for people (aligned plain text) and for programs (a dictionary for JSON)."""

from __future__ import annotations

from openautoglm.planner.limits import MAX_COUNTED_CONCURRENCY
from openautoglm.planner.offload import spans
from openautoglm.planner.tables import columns
from openautoglm.spec.offload import OffloadPlan
from openautoglm.spec.plan import BLOCK_TOKENS, Breakdown, Component, Plan
from openautoglm.units import format_bytes

SCHEMA_VERSION = 1


def plan_table(plan: Plan, *, parts: bool = False) -> str:
    """Return a plan as text: header, components (with `parts`, what they consist of), what would still fit, and why."""
    count = _billions(plan.num_parameters)
    if plan.num_active_parameters != plan.num_parameters:
        count += f", {_billions(plan.num_active_parameters)} active per token"
    lines = [f"plan for {plan.model} ({plan.family}, {count})", "", component_table(plan, parts=parts), ""]
    lines += columns(
        [
            (f"  largest context at concurrency {plan.concurrency}", f"{plan.max_context_tokens:,} tokens"),
            (f"  largest concurrency at {plan.context_tokens:,} tokens", _at_most(plan.max_concurrency)),
            *([] if plan.offload is None else _offload_rows(plan.offload)),
        ]
    )
    if not plan.runnable:
        lines += ["", *(f"  not runnable yet: {feature}" for feature in plan.unsupported)]
    if plan.reasons:
        lines += ["", "why", *(f"  {reason}" for reason in plan.reasons)]
    return "\n".join(lines)


def component_table(plan: Plan, *, parts: bool = False) -> str:
    """Return the components of a plan with their settings and bytes, the total and the budget.

    With `parts` each component is followed by what it consists of, and the total by page cache and disk.
    """
    breakdown, formats = plan.breakdown, plan.formats
    tied = breakdown.embedding_weight_bytes == 0
    rows = [
        ("weights: layers", str(formats.layers), breakdown.layer_weight_bytes),
        *(_part_rows(breakdown, Component.WEIGHTS, skip=_NOT_LAYERS) if parts else []),
        ("weights: head and embeddings" if tied else "weights: head", str(formats.head), breakdown.head_weight_bytes),
        *([] if tied else [("weights: embeddings", str(formats.embedding), breakdown.embedding_weight_bytes)]),
        ("weights: norms and biases", "f32", breakdown.norm_bytes),
        *([] if plan.offload is None else [("weights: ring", _on_disk(plan.offload), breakdown.ring_bytes)]),
        (
            "KV cache",
            _pool(plan),
            breakdown.kv_bytes,
        ),
        *(_part_rows(breakdown, Component.KV) if parts else []),
        (
            "workspace",
            f"steps of {plan.max_step_tokens:,} tokens, {plan.max_step_rows} rows",
            breakdown.workspace_bytes,
        ),
        *(_part_rows(breakdown, Component.WORKSPACE) if parts else []),
        ("runtime", f"process, tokenizer, {plan.num_threads} threads", breakdown.runtime_bytes),
        *(_part_rows(breakdown, Component.RUNTIME) if parts else []),
        *([("prefix and spill tiers", _tiers(plan), breakdown.tier_bytes)] if parts or breakdown.tier_bytes else []),
        *(_part_rows(breakdown, Component.TIERS) if parts else []),
        ("predicted peak", "", breakdown.peak_bytes),
        ("headroom", "left free", breakdown.headroom_bytes),
        ("total", "", breakdown.total_bytes),
        ("budget", "", plan.budget_bytes),
        ("unused" if breakdown.total_bytes <= plan.budget_bytes else "short", "", _difference(plan)),
    ]
    cells = [(f"  {name}", settings, format_bytes(num_bytes)) for name, settings, num_bytes in rows]
    table = columns([("  component", "settings", "bytes"), *cells])
    if parts:
        beside = [
            (f"  {title}: {part.name}", part.detail, format_bytes(part.num_bytes))
            for component, title in ((Component.PAGE_CACHE, "page cache"), (Component.DISK, "disk"))
            for part in breakdown.parts_of(component)
        ]
        table += ["", "beside the budget, at most", *columns(beside)] if beside else []
    return "\n".join(table)


_NOT_LAYERS = ("head", "embeddings", "head and embeddings", "norms and biases")


def _part_rows(breakdown: Breakdown, component: Component, *, skip: tuple[str, ...] = ()) -> list[tuple[str, str, int]]:
    return [
        (f"  {part.name}", part.detail, part.num_bytes)
        for part in breakdown.parts_of(component)
        if part.name not in skip
    ]


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
        "pinned_blocks": plan.pinned_blocks,
        "block_tokens": BLOCK_TOKENS,
        "max_step_tokens": plan.max_step_tokens,
        "max_step_rows": plan.max_step_rows,
        "num_threads": plan.num_threads,
        "budget_bytes": plan.budget_bytes,
        "breakdown": breakdown_as_dict(plan.breakdown),
        "spill": {
            "memory_bytes": plan.spill.memory_bytes,
            "disk_bytes": plan.spill.disk_bytes,
            "directory": plan.spill.directory,
        },
        "offload": None if plan.offload is None else offload_as_dict(plan.offload),
        "reasons": list(plan.reasons),
    }


def breakdown_as_dict(breakdown: Breakdown) -> dict[str, object]:
    """Return every component and the sums, in bytes, and the parts of each component."""
    return {
        "layer_weight_bytes": breakdown.layer_weight_bytes,
        "head_weight_bytes": breakdown.head_weight_bytes,
        "embedding_weight_bytes": breakdown.embedding_weight_bytes,
        "norm_bytes": breakdown.norm_bytes,
        "weight_bytes": breakdown.weight_bytes,
        "ring_bytes": breakdown.ring_bytes,
        "kv_bytes": breakdown.kv_bytes,
        "workspace_bytes": breakdown.workspace_bytes,
        "runtime_bytes": breakdown.runtime_bytes,
        "tier_bytes": breakdown.tier_bytes,
        "peak_bytes": breakdown.peak_bytes,
        "headroom_bytes": breakdown.headroom_bytes,
        "total_bytes": breakdown.total_bytes,
        "parts": {
            component.value: [
                {"name": part.name, "detail": part.detail, "bytes": part.num_bytes}
                for part in breakdown.parts_of(component)
            ]
            for component in Component
        },
    }


def offload_as_dict(offload: OffloadPlan) -> dict[str, object]:
    """Return what stays on disk and the predicted speed; bytes and bytes per second."""
    speed = offload.speed
    return {
        "layers": list(offload.layers),
        "file_bytes": offload.file_bytes,
        "disk_bytes": offload.disk_bytes,
        "ring_bytes": offload.ring_bytes,
        "num_readers": offload.num_readers,
        "directory": offload.directory or None,
        "direct_reads": None if speed is None else speed.direct,
        "disk_bytes_per_second": None if speed is None else round(speed.disk_bytes_per_second),
        "memory_bytes_per_second": None if speed is None else round(speed.memory_bytes_per_second),
        "tokens_per_second": None if speed is None else speed.tokens_per_second,
        "write_seconds": None if speed is None else speed.write_seconds,
    }


def _on_disk(offload: OffloadPlan) -> str:
    return f"layers {spans(offload.layers)} on disk, {offload.num_readers} readers"


def _pool(plan: Plan) -> str:
    pinned = f" ({plan.pinned_blocks:,} pinned)" if plan.pinned_blocks else ""
    return f"{plan.formats.kv}, {plan.concurrency} x {plan.context_tokens:,} tokens, {plan.num_blocks:,} blocks{pinned}"


def _tiers(plan: Plan) -> str:
    sizes = ((plan.spill.memory_bytes, "in memory"), (plan.spill.disk_bytes, "on disk"))
    return ", ".join(f"{format_bytes(size)} {where}" for size, where in sizes if size)


def _offload_rows(offload: OffloadPlan) -> list[tuple[str, str]]:
    rows = [("  weights on disk, read by each step", format_bytes(offload.disk_bytes))]
    if offload.speed is not None:
        rows.append(("  predicted speed of one sequence", f"{offload.speed.tokens_per_second:.2f} tokens/s"))
    return rows


def _difference(plan: Plan) -> int:
    return abs(plan.budget_bytes - plan.breakdown.total_bytes)


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B parameters" if count >= 100_000_000 else f"{count / 1e6:.1f} M parameters"


def _at_most(count: int) -> str:
    return f"{count:,} sequences" + (" or more" if count == MAX_COUNTED_CONCURRENCY else "")
