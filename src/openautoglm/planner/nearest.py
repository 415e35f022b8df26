"""The nearest plans that do fit: what a user can change, each as a command that works as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from openautoglm.memory.kv import can_have_kv_format
from openautoglm.planner import candidates, offload
from openautoglm.planner.limits import largest_concurrency, largest_context
from openautoglm.planner.price import Choice, Pricer
from openautoglm.spec.formats import DEFAULT_WEIGHT_GROUP, ActivationScale, AttentionArithmetic, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode, Placement
from openautoglm.units import GIB, MIB, format_bytes, round_up

MEMORY_STEP_BYTES = 64 * MIB
MAX_WITHIN_BUDGET = 5
MIN_SUGGESTIONS = 3
MORE_MEMORY = "more memory"
_FALLBACKS = (
    ("int8 weights", NumberFormat.INT8, None),
    ("int4 weights", NumberFormat.INT4, None),
    ("int4 weights in groups of 128", NumberFormat.INT4, 128),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A plan that fits: its goal, the command that asks for it, and what it changes."""

    goal: Goal
    command: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    pricer: Pricer
    asked: Goal
    budget_bytes: int
    num_threads: int

    def tightest(self, goal: Goal) -> Choice:
        """Return the smallest choice that meets a goal whose context and concurrency are set."""
        return list(candidates.choices(self.pricer.spec, goal, self.num_threads))[-1]

    def fits(self, goal: Goal) -> bool:
        return self.pricer.fits(self.tightest(goal), goal.memory_bytes or self.budget_bytes)

    def needed_bytes(self, goal: Goal) -> int:
        return self.pricer.total_bytes(self.tightest(goal))


def suggestions(pricer: Pricer, goal: Goal, budget_bytes: int, model: str, num_threads: int) -> tuple[Suggestion, ...]:
    """Return at least three plans near `goal` that fit: smaller ones within the budget, then more memory."""
    search = _Search(pricer=pricer, asked=goal, budget_bytes=budget_bytes, num_threads=num_threads)
    found: dict[str, Suggestion] = {}
    on_disk = _on_disk(search, model)
    if on_disk is not None:
        found[on_disk.command] = on_disk

    def add(near: Goal, note: str) -> None:
        command = _command(model, near)
        note = f"{note}: {format_bytes(search.needed_bytes(near))}"
        found.setdefault(command, Suggestion(goal=near, command=command, note=note))

    for near, note in _within_budget(search):
        if len(found) < MAX_WITHIN_BUDGET:
            add(near, note)
    for near, note in _more_memory(search):
        if note == MORE_MEMORY or len(found) < MIN_SUGGESTIONS:
            add(near, note)
    return tuple(found.values())


def _on_disk(search: _Search, model: str) -> Suggestion | None:
    """Return the request with layers on disk, where the user forbade them; None where that does not fit either."""
    if search.asked.offload is not OffloadMode.NONE:
        return None
    goal = replace(search.asked, offload=OffloadMode.AUTO)
    for choice in offload.choices(search.pricer, goal, search.budget_bytes, search.num_threads):
        if search.pricer.fits(choice, search.budget_bytes):
            near = replace(
                goal,
                quant=choice.formats.layers.number,
                context_tokens=choice.context_tokens,
                concurrency=choice.concurrency,
            )
            num_layers, on_disk = search.pricer.spec.num_layers, format_bytes(search.pricer.disk_bytes(choice))
            note = f"{len(choice.disk_layers)} of {num_layers} layers on disk: {on_disk} read by every step, slower"
            return Suggestion(goal=near, command=f"{_command(model, near)} --offload auto", note=note)
    return None


def _requested(search: _Search) -> Goal:
    """Return the goal with every open wish at its least: what the user insists on."""
    goal = search.asked
    return replace(
        goal,
        quant=goal.quant or candidates.AUTOMATIC_FORMATS[-1],
        context_tokens=goal.context_tokens or _least_context(search),
        concurrency=goal.concurrency or 1,
    )


def _least_context(search: _Search) -> int:
    return min(search.pricer.spec.max_positions, candidates.SMALLER_CONTEXTS[-1])


def _within_budget(search: _Search) -> Iterator[tuple[Goal, str]]:
    """Yield goals that fit the budget: one wish given up at a time, then two."""
    requested = _requested(search)
    changes = ((_with_largest_context, "smaller context"), (_with_most_sequences, "fewer sequences"))
    for change, note in changes:
        near = change(search, requested)
        if near is not None:
            yield near, note
    others = [(replace(requested, quant=number, group=group), note) for note, number, group in _FALLBACKS]
    if can_have_kv_format(search.pricer.spec, NumberFormat.INT8):
        others.insert(0, (replace(requested, kv=NumberFormat.INT8), "int8 KV cache"))
    smaller = [(other, note) for other, note in others if search.needed_bytes(other) < search.needed_bytes(requested)]
    for other, note in smaller:
        if search.fits(other):
            yield other, note
    for other, note in smaller:
        for change, given_up in changes:
            near = change(search, other)
            if near is not None:
                yield near, f"{note}, {given_up}"
    for other, note in smaller:
        near = _with_largest_context(search, replace(other, concurrency=1))
        if near is not None:
            same_context = near.context_tokens == requested.context_tokens
            yield near, f"{note}, one sequence" + ("" if same_context else ", smaller context")


def _more_memory(search: _Search) -> Iterator[tuple[Goal, str]]:
    """Yield the request itself with the memory that it needs, then smaller ones; all of them fit."""
    requested = _requested(search)
    yield _with_memory(search, requested), MORE_MEMORY
    for note, number, group in _FALLBACKS:
        small = replace(requested, quant=number, group=group, context_tokens=_least_context(search), concurrency=1)
        yield _with_memory(search, small), f"more memory, {note}, one short sequence"


def _with_largest_context(search: _Search, goal: Goal) -> Goal | None:
    """Return the goal with the largest neat context that fits, at most its own; None if not even the least fits."""
    assert goal.context_tokens is not None
    least = min(goal.context_tokens, _least_context(search))
    choice = search.tightest(replace(goal, context_tokens=least))
    largest = min(largest_context(search.pricer, choice, search.budget_bytes), goal.context_tokens)
    while largest >= least:
        near = replace(goal, context_tokens=candidates.neat_context(largest))
        if search.fits(near):
            return near
        largest -= max(16, largest // 64)  # a longer context may widen the step
    return None


def _with_most_sequences(search: _Search, goal: Goal) -> Goal | None:
    assert goal.concurrency is not None
    choice = search.tightest(replace(goal, concurrency=1))
    fixed = goal.chunk_tokens is not None
    largest = min(largest_concurrency(search.pricer, choice, search.budget_bytes, fixed_chunk=fixed), goal.concurrency)
    for concurrency in range(largest, 0, -1):
        near = replace(goal, concurrency=concurrency)
        if search.fits(near):
            return near
    return None


def _with_memory(search: _Search, goal: Goal) -> Goal:
    return replace(goal, memory_bytes=round_up(search.needed_bytes(goal), MEMORY_STEP_BYTES))


def _command(model: str, goal: Goal) -> str:
    """Return the command line of a goal whose context, concurrency and format are set."""
    words = ["openautoglm", "plan", model]
    if goal.memory_bytes is not None:
        words += ["--memory", _size(goal.memory_bytes)]
    if goal.quant is not NumberFormat.F32:  # reachable from the library only
        words += ["--quant", str(goal.quant)]
    if goal.group is not None and goal.group != DEFAULT_WEIGHT_GROUP:
        words += ["--group", str(goal.group)]
    words += ["--context", str(goal.context_tokens), "--concurrency", str(goal.concurrency)]
    if goal.activations is not ActivationScale.GROUP:
        words += ["--activations", str(goal.activations)]
    if goal.kv is not None:
        words += ["--kv", str(goal.kv)]
    if goal.attention is not AttentionArithmetic.FASTEST:
        words += ["--attention", str(goal.attention)]
    if goal.offload is not OffloadMode.AUTO:
        words += ["--offload", str(goal.offload)]
    if goal.placement != Placement():
        words += ["--place", str(goal.placement)]
    if goal.offload_directory is not None:
        words += ["--offload-dir", goal.offload_directory]
    for option, num_bytes in (("--spill-memory", goal.spill.memory_bytes), ("--spill-disk", goal.spill.disk_bytes)):
        if num_bytes:
            words += [option, _size(num_bytes)]
    if goal.spill.directory is not None:
        words += ["--spill-dir", goal.spill.directory]
    if goal.num_threads is not None:
        words += ["--threads", str(goal.num_threads)]
    if goal.chunk_tokens is not None:
        words += ["--chunk", str(goal.chunk_tokens)]
    if goal.objective is not None:
        words += ["--objective", str(goal.objective)]
    return shlex.join(words)


def _size(num_bytes: int) -> str:
    """Write a size so that it parses back to exactly the same bytes."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if num_bytes % unit == 0:
            return f"{num_bytes // unit}{name}"
    return f"{num_bytes}B"
