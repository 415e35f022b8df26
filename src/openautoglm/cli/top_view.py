"""From a look at a server to the lines of a screen: pure, of any width."""

from __future__ import annotations

from collections.abc import Iterator

from openautoglm.cli.top_look import REQUESTS, Rates, ServerLook, rung_name
from openautoglm.units import format_bytes

LEAST_WIDTH = 20
_NAME_WIDTH, _SIZE_WIDTH = 24, 10
_LABEL_WIDTH = 10
_MOST_BAR = 60
# One letter a part, as in the bar; parts that come later have "+".
_LETTERS = {
    "weights": "w", "KV pool": "k", "workspace": "s", "runtime": "r", "block index": "b", "headroom": "h",
    "request history": "q", "ring of weights on disk": "d", "KV spill": "x", "allocation tracing": "t",
}  # fmt: skip


def top_lines(url: str, look: ServerLook, per_second: Rates, *, width: int) -> list[str]:
    """Return the lines, none wider than `width` (LEAST_WIDTH at least): what matters most comes first."""
    width = max(width, LEAST_WIDTH)
    state = "ready" if look.ready else "not ready: the engine starts, or does not answer"
    lines = [*_row("server", [look.model, state, url], width)]
    if "openautoglm_ladder_rung" in look.values:
        lines += ["", *_budget(look, width), "", *_requests(look, per_second, width), "", *_ladder(look), ""]
        lines += [*_pressure(look, width), "", *_ledger(look, width)]
    return [line[:width].rstrip() for line in lines]


def _budget(look: ServerLook, width: int) -> Iterator[str]:
    budget, taken = look.number("openautoglm_memory_budget_bytes"), look.number("openautoglm_memory_tree_bytes")
    ledger = look.group("openautoglm_memory_ledger_bytes")
    charged = f"{format_bytes(sum(ledger.values()))} in the ledger"
    yield from _row("budget", [format_bytes(budget), charged, f"{format_bytes(taken)} taken"], width)
    if budget > 0:
        size = min(width - 2, _MOST_BAR)
        yield _segments([(_letter(name), num_bytes / budget) for name, num_bytes in ledger.items()], size)
        yield _segments([("#", taken / budget)], size)


def _requests(look: ServerLook, per_second: Rates, width: int) -> Iterator[str]:
    yield from _row("requests", [f"{look.number(metric)} {name}" for name, metric in REQUESTS.items()], width)
    generated, prompt, steps = (_rate(per_second[name]) for name in ("generated_tokens", "prompt_tokens", "steps"))
    yield from _row("tokens/s", [f"{generated} generated", f"{prompt} of prompts", f"{steps} steps/s"], width)
    found = {name: number for name, number in look.group("openautoglm_memory_reports_total").items() if number}
    if found:
        yield from _row("reports", [f"{name} {number}" for name, number in found.items()], width)


def _ladder(look: ServerLook) -> Iterator[str]:
    from openautoglm.spec.pressure import Rung

    entered = look.group("openautoglm_ladder_rung_transitions_total")
    now = look.number("openautoglm_ladder_rung")
    yield f"ladder    {rung_name(look)}"
    for rung in Rung:
        if rung is not Rung.NONE:
            mark = ">" if rung == now else "*" if rung < now else " "
            times = entered.get(rung.label, 0)
            yield f"  {mark} {rung.label:<{_NAME_WIDTH}}" + (f"entered {times} times" if times else "")


def _pressure(look: ServerLook, width: int) -> Iterator[str]:
    level = look.values.get("openautoglm_memory_pressure", 0.0)
    blocks = look.values.get("openautoglm_block_pressure", 0.0)
    stalled = look.values.get("openautoglm_memory_stalled_share", 0.0)
    parts = [f"bytes {level:.2f}", f"blocks {blocks:.2f}", f"{stalled:.0%} of the time waiting for memory"]
    yield from _row("pressure", parts, width)
    left = look.group("openautoglm_memory_left_bytes")
    for source, limit in look.group("openautoglm_memory_limit_bytes").items():
        share = 1 - left.get(source, 0) / limit if limit > 0 else 1.0
        bar = _segments([("#", share)], min(20, max(4, width // 6)))
        yield from _row(
            f"  {bar}", [source, f"{format_bytes(left.get(source, 0))} left of {format_bytes(limit)}"], width
        )


def _ledger(look: ServerLook, width: int) -> Iterator[str]:
    yield "ledger"
    for name, num_bytes in look.group("openautoglm_memory_ledger_bytes").items():
        line = f"  {_letter(name)} {name:<{_NAME_WIDTH}}{format_bytes(num_bytes):>{_SIZE_WIDTH}}"
        notes = {"KV pool": _pool_note, "workspace": _workspace_note}.get(name, _no_note)(look)
        if len(line) + 2 + len(", ".join(notes)) <= width:
            yield f"{line}  {', '.join(notes)}".rstrip()
        else:
            yield line
            yield from _row("    ", notes, width)


def _pool_note(look: ServerLook) -> list[str]:
    blocks, sizes = look.group("openautoglm_kv_blocks"), look.group("openautoglm_kv_pool_blocks")
    notes = [f"{blocks.get(state, 0)} {state}" for state in ("used", "cached", "free")]
    now, target, planned = (sizes.get(size, 0) for size in ("now", "target", "planned"))
    if target != now:
        notes.append(f"on its way to {target}")
    return [*notes, f"of {now} blocks" + ("" if planned == now else f" ({planned} planned)")]


def _workspace_note(look: ServerLook) -> list[str]:
    return [f"steps of up to {look.number('openautoglm_step_tokens')} tokens"]


def _no_note(_look: ServerLook) -> list[str]:
    return []


def _letter(name: str) -> str:
    return _LETTERS.get(name, "+")


def _segments(parts: list[tuple[str, float]], size: int) -> str:
    """Return a bar of `size` places: each part as long as its share, and visible if it is there at all."""
    bar = ""
    for letter, share in parts:
        bar += letter * max(1 if share > 0 else 0, round(share * size))
    return f"[{bar[:size]:.<{size}}]"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _row(label: str, parts: list[str], width: int) -> Iterator[str]:
    """Yield parts beside each other behind a label, in as many lines as they need."""
    line = f"{label:<{_LABEL_WIDTH - 1}} "
    empty = True
    for part in parts:
        if not empty and len(line) + 2 + len(part) > width:
            yield line + ","
            line, empty = " " * min(_LABEL_WIDTH, width // 4), True
        line += part if empty else f", {part}"
        empty = False
    if not empty:
        yield line
