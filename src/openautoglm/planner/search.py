"""(ArchSpec, MachineSpec, Goal) -> Plan, or DoesNotFitError with the nearest plans that do fit."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.errors import ConfigError, DoesNotFitError
from openautoglm.memory.runtime import RuntimeNeeds
from openautoglm.memory.spill import num_slots, slot_bytes
from openautoglm.memory.weights import num_active_parameters, num_parameters
from openautoglm.planner import candidates, nearest, offload, reasons
from openautoglm.planner.explain import component_table
from openautoglm.planner.limits import largest_concurrency, largest_context
from openautoglm.planner.price import Choice, Pricer
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.machine import MachineSpec
from openautoglm.spec.offload import DiskRoom, OffloadMode, OffloadPlan
from openautoglm.spec.plan import Plan
from openautoglm.units import format_bytes


def make_plan(
    spec: ArchSpec,
    machine: MachineSpec,
    goal: Goal,
    *,
    model: str,
    unsupported: tuple[str, ...] = (),
    runtime: RuntimeNeeds | None = None,
    disk_room: DiskRoom | None = None,
) -> Plan:
    """Choose settings for `spec` on `machine`: the goal's own where set, else the best that fit the budget.

    The budget is the goal's, or what machine and control groups leave now. `model` is how the user names the model
    (for commands in messages). `unsupported` are the executor's reasons for not running it; such a model is planned
    all the same. `runtime` sizes the process: None means a library with a tokenizer as large as published ones are.
    `disk_room` is what layers may take on disk; None asks no disk. Takes no memory to speak of; reads nothing but its
    arguments.

    Raises `DoesNotFitError` (with a table and the nearest plans that fit) and `ConfigError` (a goal out of range).
    """
    candidates.check_goal(spec, goal)
    budget_bytes = goal.memory_bytes or min(machine.memory.available_bytes, machine.memory.limit_bytes)
    num_threads = goal.num_threads or machine.cpu.num_cores
    pricer = Pricer(spec, runtime, goal.spill, disk_room)
    chosen = _choose(pricer, goal, budget_bytes, num_threads)
    if chosen is not None:
        _check_spill(pricer, chosen)
        plan = _plan(pricer, chosen, budget_bytes, model, unsupported, offload.describe(pricer, goal, chosen))
        return replace(plan, reasons=reasons.explain(pricer, machine, goal, plan))
    short_disk = _short_disk(pricer, goal, budget_bytes, num_threads)
    if short_disk and (goal.placement.disk or goal.offload is OffloadMode.DISK):
        # The disk that the user wants cannot be had: what is suggested does without.
        goal = replace(goal, placement=replace(goal.placement, disk=()), offload=OffloadMode.NONE)
    raise _does_not_fit(pricer, machine, goal, budget_bytes, model, num_threads, short_disk)


def _choose(pricer: Pricer, goal: Goal, budget_bytes: int, num_threads: int) -> Choice | None:
    """Return the best choice that fits, None if none does."""
    if goal.objective is Objective.CONTEXT and goal.context_tokens is None:
        longest = _longest(pricer, goal, budget_bytes, num_threads)
        if longest is not None:
            return longest
    first: Choice | None = None
    for choice in offload.choices(pricer, goal, budget_bytes, num_threads):
        first = first or choice
        if pricer.fits(choice, budget_bytes):
            return _grow(pricer, goal, choice, budget_bytes) if choice == first else choice
    return None


def _longest(pricer: Pricer, goal: Goal, budget_bytes: int, num_threads: int) -> Choice | None:
    """Return the choice with the largest neat context; of equal ones the best format, then the widest step.

    None where not even the smallest context of other objectives fits.
    """
    best: Choice | None = None
    least = min(pricer.spec.max_positions, candidates.SMALLER_CONTEXTS[-1])
    tried = candidates.choices(pricer.spec, replace(goal, context_tokens=pricer.spec.max_positions), num_threads)
    for choice in tried:
        largest = largest_context(pricer, choice, budget_bytes)
        context_tokens = largest if largest == pricer.spec.max_positions else candidates.neat_context(largest)
        if context_tokens >= least and (best is None or context_tokens > best.context_tokens):
            best = replace(choice, context_tokens=context_tokens)
    return best


def _grow(pricer: Pricer, goal: Goal, choice: Choice, budget_bytes: int) -> Choice:
    """Use a budget that the user gave: the context grows first, then the sequences; a guessed budget is left alone.

    More sequences answer each more slowly, so that they grow only where no objective speaks against it.
    """
    if goal.memory_bytes is None or goal.objective is Objective.THROUGHPUT or choice.disk_layers != goal.placement.disk:
        return choice
    spec = pricer.spec
    if goal.context_tokens is None:
        largest = largest_context(pricer, choice, budget_bytes)
        grown = largest if largest == spec.max_positions else candidates.neat_context(largest)
        choice = replace(choice, context_tokens=max(choice.context_tokens, grown))
        if choice.context_tokens < spec.max_positions:
            return choice
    if goal.concurrency is None and goal.objective is None:
        largest = largest_concurrency(pricer, choice, budget_bytes, fixed_chunk=goal.chunk_tokens is not None)
        concurrency = max(choice.concurrency, min(largest, candidates.MAX_GROWN_CONCURRENCY))
        max_step_tokens, max_step_rows = next(candidates.widths(goal, choice.context_tokens, concurrency))
        grown_choice = replace(
            choice, concurrency=concurrency, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows
        )
        choice = grown_choice if pricer.fits(grown_choice, budget_bytes) else choice
    return choice


def _plan(
    pricer: Pricer,
    choice: Choice,
    budget_bytes: int,
    model: str,
    unsupported: tuple[str, ...],
    offload_plan: OffloadPlan | None,
) -> Plan:
    spec = pricer.spec
    return Plan(
        model=model,
        family=spec.family,
        formats=choice.formats,
        num_parameters=num_parameters(spec),
        num_active_parameters=num_active_parameters(spec),
        context_tokens=choice.context_tokens,
        max_context_tokens=largest_context(pricer, choice, budget_bytes),
        concurrency=choice.concurrency,
        max_concurrency=largest_concurrency(pricer, choice, budget_bytes),
        num_blocks=choice.num_blocks,
        max_step_tokens=choice.max_step_tokens,
        max_step_rows=choice.max_step_rows,
        num_threads=choice.num_threads,
        budget_bytes=budget_bytes,
        breakdown=pricer.detailed(choice),
        offload=offload_plan,
        spill=pricer.spill,
        pinned_blocks=choice.pinned_blocks,
        unsupported=unsupported,
    )


def _check_spill(pricer: Pricer, choice: Choice) -> None:
    """Raise `ConfigError` for a tier that could not hold one block: it would do nothing."""
    block_bytes, spill = pricer.block_bytes(choice.formats), pricer.spill
    for name, value in (("spill_memory", spill.memory_bytes), ("spill_disk", spill.disk_bytes)):
        if value and not num_slots(value, block_bytes):
            raise ConfigError(
                f"{name} {format_bytes(value)} cannot hold one block of KV cache, which takes "
                f"{format_bytes(slot_bytes(block_bytes))}: ask for more, or leave it out"
            )


def _short_disk(pricer: Pricer, goal: Goal, budget_bytes: int, num_threads: int) -> str:
    """Return what the disk lacks where layers on disk are all that would make the model fit; else nothing."""
    room = pricer.disk_room
    if room is None:
        return ""
    boundless = Pricer(pricer.spec, pricer.runtime, pricer.spill)
    chosen = _choose(boundless, goal, budget_bytes, num_threads)
    if chosen is None or not chosen.disk_layers:
        return ""
    return (
        f"layers on disk would need a file of {format_bytes(boundless.packed_file_bytes(chosen.formats))}, but "
        f"{room.directory} can take {format_bytes(room.free_bytes)}: free some space, or choose another disk with "
        "--offload-dir"
    )


def _does_not_fit(
    pricer: Pricer,
    machine: MachineSpec,
    goal: Goal,
    budget_bytes: int,
    model: str,
    num_threads: int,
    short_disk: str,
) -> DoesNotFitError:
    smallest = list(candidates.choices(pricer.spec, goal, num_threads))[-1]
    needed = pricer.total_bytes(smallest)
    plan = _plan(pricer, smallest, budget_bytes, model, (), offload.describe(pricer, goal, smallest))
    source = "given by --memory" if goal.memory_bytes else reasons.free_memory(machine)
    suggestions = nearest.suggestions(pricer, goal, budget_bytes, model, num_threads)
    width = max(len(suggestion.command) for suggestion in suggestions)
    memory = f"budget is {format_bytes(budget_bytes)} ({source})"
    lines = [
        f"{model} does not fit with layers on disk, as you set; in memory alone it would: it needs "
        f"{format_bytes(needed)}, the {memory}"
        if needed <= budget_bytes
        else f"{model} does not fit, even at the least that the settings allow: it needs {format_bytes(needed)}, the "
        f"{memory}, {format_bytes(needed - budget_bytes)} short",
        *([short_disk] if short_disk else []),
        "",
        component_table(plan),
        "",
        "nearest plans that fit:",
        *(f"  {suggestion.command:<{width}}  # {suggestion.note}" for suggestion in suggestions),
    ]
    return DoesNotFitError("\n".join(lines), suggestions=tuple(suggestion.command for suggestion in suggestions))
