"""Receipts: what a plan said beside what was measured after the load, each component alone."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.planner.explain import SCHEMA_VERSION, plan_as_dict
from openautoglm.planner.tables import columns
from openautoglm.spec.plan import Component, Part, Plan
from openautoglm.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What a loaded engine really took.

    `weight_bytes`, `ring_bytes`, `kv_bytes` and `workspace_bytes` are the executor's own allocations, `tier_bytes` are
    those of spill tiers; `untouched_bytes` of all these have not been written yet. `runtime_bytes` is the process tree
    before loading; `resident_bytes` is the tree's proportional set size now, `peak_bytes` its largest so far. `parts`
    are those of a breakdown that can be measured alone; `detail` is empty. `direct_reads`: weights on disk are read
    past the page cache; None where none are on disk.
    """

    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    untouched_bytes: int
    resident_bytes: int
    peak_bytes: int
    parts: tuple[Part, ...] = ()
    ring_bytes: int = 0
    tier_bytes: int = 0
    direct_reads: bool | None = None

    @property
    def accounted_bytes(self) -> int:
        """The sum of the components, as far as they are in memory."""
        beside = self.ring_bytes + self.tier_bytes
        return (
            beside
            + self.weight_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.runtime_bytes
            - self.untouched_bytes
        )

    @property
    def unaccounted_bytes(self) -> int:
        """Resident bytes that no component explains; negative where a component shrank after it was measured."""
        return self.resident_bytes - self.accounted_bytes


def receipt_table(plan: Plan, measured: MeasuredMemory) -> str:
    """Return planned and measured bytes per component after loading, and the rest that no component explains."""
    planned = plan.breakdown
    cells = [
        (f"  {name}", format_bytes(plan_bytes), format_bytes(bytes_), _percent(bytes_, plan_bytes), "")
        for name, plan_bytes, bytes_ in _components(plan, measured)
    ]
    cells.append(
        (
            "  not touched yet",
            "",
            format_bytes(-measured.untouched_bytes),
            "",
            "of KV cache, workspace and tiers" if planned.tier_bytes else "of KV cache and workspace",
        )
    )
    unaccounted = format_bytes(measured.unaccounted_bytes)
    cells.append(("  unaccounted", "", unaccounted, "", "resident, explained by no component"))
    for name, bytes_ in (("resident now", measured.resident_bytes), ("peak so far", measured.peak_bytes)):
        share = _percent(bytes_, planned.peak_bytes)
        cells.append((f"  {name}", format_bytes(planned.peak_bytes), format_bytes(bytes_), share, ""))
    lines = [f"receipt for {plan.model}", *columns([("  component", "planned", "measured", "share", ""), *cells])]
    if measured.direct_reads is not None:
        how = "direct, past the page cache" if measured.direct_reads else "through the page cache: no direct reads here"
        lines.append(f"  reads of weights on disk: {how}")
    return "\n".join(lines)


def receipt_as_dict(plan: Plan, measured: MeasuredMemory) -> dict[str, object]:
    """Return the receipt as plain values: each component and each part of one alone, then process and plan.

    `difference_bytes` is planned less measured: negative where the plan fell short. Page cache and disk are upper
    bounds in a plan, so that a positive difference is no error there.
    """
    planned_parts = {(part.component, part.name): part for part in plan.breakdown.parts}
    comparisons = [_compared(name, "", *sizes) for name, *sizes in _components(plan, measured)]
    for part in measured.parts:
        planned = planned_parts.get((part.component, part.name))
        planned_bytes = 0 if planned is None else planned.num_bytes
        comparisons.append(_compared(_NAMES[part.component], part.name, planned_bytes, part.num_bytes))
    return {
        "schema_version": SCHEMA_VERSION,
        "model": plan.model,
        "components": comparisons,
        "direct_reads": measured.direct_reads,
        "untouched_bytes": measured.untouched_bytes,
        "unaccounted_bytes": measured.unaccounted_bytes,
        "resident_bytes": measured.resident_bytes,
        "peak": _compared("peak", "", plan.breakdown.peak_bytes, measured.peak_bytes),
        "plan": {name: value for name, value in plan_as_dict(plan).items() if name != "reasons"},
    }


_NAMES = {
    Component.WEIGHTS: "weights",
    Component.KV: "KV cache",
    Component.WORKSPACE: "workspace",
    Component.RUNTIME: "runtime",
    Component.TIERS: "prefix and spill tiers",
    Component.PAGE_CACHE: "page cache",
    Component.DISK: "disk",
}


def _components(plan: Plan, measured: MeasuredMemory) -> list[tuple[str, int, int]]:
    planned = plan.breakdown
    return [
        ("weights", planned.weight_bytes, measured.weight_bytes),
        *([("weights: ring", planned.ring_bytes, measured.ring_bytes)] if planned.ring_bytes else []),
        ("KV cache", planned.kv_bytes, measured.kv_bytes),
        ("workspace", planned.workspace_bytes, measured.workspace_bytes),
        ("runtime", planned.runtime_bytes, measured.runtime_bytes),
        *([("spill tiers", planned.tier_bytes, measured.tier_bytes)] if planned.tier_bytes else []),
    ]


def _compared(component: str, part: str, planned_bytes: int, measured_bytes: int) -> dict[str, object]:
    return {
        "component": component,
        "part": part or None,
        "planned_bytes": planned_bytes,
        "measured_bytes": measured_bytes,
        "difference_bytes": planned_bytes - measured_bytes,
    }


def _percent(measured_bytes: int, planned_bytes: int) -> str:
    return f"{100 * measured_bytes / planned_bytes:.1f} %" if planned_bytes else ""
