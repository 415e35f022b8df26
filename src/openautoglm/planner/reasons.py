"""Why a plan is what it is, in sentences: for each setting, who chose it and what the alternative would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openautoglm.memory.kv import can_have_kv_format
from openautoglm.planner import candidates, offload
from openautoglm.planner.price import Choice, Pricer
from openautoglm.planner.quality_costs import MEASURED_ON, describe_cost
from openautoglm.spec.formats import (
    ActivationScale,
    AttentionArithmetic,
    ModelFormats,
    NumberFormat,
    WeightFormat,
)
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.machine import MachineSpec
from openautoglm.spec.plan import BLOCK_TOKENS, Plan
from openautoglm.units import format_bytes


def explain(pricer: Pricer, machine: MachineSpec, goal: Goal, plan: Plan) -> tuple[str, ...]:
    """Return the reasons of a plan, most important first."""
    return (
        *_budget(machine, goal, plan),
        *_objective(goal),
        *_format(pricer, goal, plan),
        *offload.reason(pricer, goal, plan),
        *_kv(pricer, goal, plan),
        *_context(pricer, goal, plan),
        *_concurrency(goal, plan),
        *_step(goal, plan),
    )


def free_memory(machine: MachineSpec) -> str:
    """Say where a budget that nobody set comes from."""
    memory = machine.memory
    if memory.limit_bytes < memory.total_bytes:
        return f"free now within the control group's limit of {format_bytes(memory.limit_bytes)}"
    return f"free now of this machine's {format_bytes(memory.total_bytes)}"


def _budget(machine: MachineSpec, goal: Goal, plan: Plan) -> Iterator[str]:
    free_bytes = min(machine.memory.available_bytes, machine.memory.limit_bytes)
    if goal.memory_bytes is None:
        yield f"budget: {format_bytes(plan.budget_bytes)} are {free_memory(machine)}"
    elif plan.budget_bytes > free_bytes:
        yield (
            f"budget: set by you, but only {format_bytes(free_bytes)} are {free_memory(machine)}: "
            "loading here needs more, or a smaller budget"
        )


_OBJECTIVES = {
    Objective.LATENCY: "few bytes per token, short steps, few sequences beside each other",
    Objective.THROUGHPUT: "as many sequences as fit",
    Objective.QUALITY: f"the best format that leaves {candidates.USABLE_CONTEXT_TOKENS:,} tokens of context",
    Objective.CONTEXT: "as many tokens as fit, one sequence",
}


def _objective(goal: Goal) -> Iterator[str]:
    if goal.objective is not None:
        yield f"objective: {goal.objective}, set by you: {_OBJECTIVES[goal.objective]}"


def _format(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    layers = plan.formats.layers
    if goal.quant is not None:
        yield f"weights: {layers}, set by you"
    else:
        yield f"weights: {layers}, {_why_format(pricer, goal, plan)}"
    if plan.formats.head != layers:
        yield f"weights: head and embeddings stay {plan.formats.head}, where 4 bits cost most quality"
    if layers.number is not NumberFormat.F32:
        cost = describe_cost(plan.formats)
        yield f"quality: {plan.formats.layers} weights and {plan.formats.kv} cache cost {cost} on {MEASURED_ON}"
    if plan.formats.activations is ActivationScale.TOKEN:
        yield "activations: one scale per token, set by you; outlier channels then cost precision"
    if plan.formats.attention is AttentionArithmetic.PORTABLE:
        yield "attention: portable, set by you; quantised weights then give equal bytes on every instruction set"


def _why_format(pricer: Pricer, goal: Goal, plan: Plan) -> str:
    """Say why this format and not the one above it: what that would need, or read."""
    tried = candidates.formats(pricer.spec, goal)
    preferred = tried[0]
    if goal.objective is Objective.LATENCY:
        better = replace(plan.formats, layers=WeightFormat(number=NumberFormat.INT8))
        return f"the fewest bytes to read per token; int8 would need {_needed(pricer, plan, better)}"
    if plan.formats.layers == preferred.layers and goal.objective is not Objective.QUALITY:
        bf16 = ModelFormats.for_quantisation(NumberFormat.BF16, activations=goal.activations, kv=plan.formats.kv)
        return (
            f"the first of int8 and int4 that fits; bf16 would read twice the bytes per token and need "
            f"{_needed(pricer, plan, bf16)}"
        )
    if plan.formats.layers == preferred.layers:
        return "the best there is"
    # The best of the better formats' caches is the smallest: what does not fit with it fits with none.
    rejected = [other for other in tried[: tried.index(plan.formats)] if other.layers != plan.formats.layers][-1]
    return f"because {rejected.layers} would need {_needed(pricer, plan, rejected)}"


def _kv(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    def per_token(formats: ModelFormats) -> str:
        return format_bytes(pricer.block_bytes(formats) // BLOCK_TOKENS)

    scaled = plan.formats.kv in (NumberFormat.INT8, NumberFormat.FP8)
    cost = f"KV cache: {plan.formats.kv}, {per_token(plan.formats)} per token"
    other = replace(plan.formats, kv=NumberFormat.BF16 if scaled else NumberFormat.INT8)
    if not can_have_kv_format(pricer.spec, other.kv):
        yield cost + (", set by you" if goal.kv is not None else "")
    elif goal.kv is not None:
        yield f"{cost}, set by you; {other.kv} would take {per_token(other)}"
    elif scaled and candidates.formats(pricer.spec, goal)[0].kv is plan.formats.kv:
        yield f"{cost}, for more tokens in the same bytes; bf16 would take {per_token(other)}, ask with --kv bf16"
    elif scaled:
        yield f"{cost}, because bf16 would take {per_token(other)} and need {_needed(pricer, plan, other)}"
    else:
        yield f"{cost}; {other.kv} would take {per_token(other)}, ask with --kv {other.kv}"


def _context(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    max_positions, usual = pricer.spec.max_positions, candidates.STRATEGIES[goal.objective].context_tokens
    context = f"context: {plan.context_tokens:,} tokens"
    if goal.context_tokens is not None:
        yield f"{context}, set by you (the model takes up to {max_positions:,})"
    elif plan.context_tokens == max_positions:
        yield f"{context}, all that the model takes"
    elif plan.context_tokens < min(max_positions, usual):
        yield f"{context}, smaller than the usual {usual:,} because no more fits"
    elif plan.context_tokens == usual:
        yield f"{context}, the default; the model takes up to {max_positions:,}, ask with --context"
    else:
        yield f"{context}, the most that the budget leaves to {_sequences(plan.concurrency)}"


def _concurrency(goal: Goal, plan: Plan) -> Iterator[str]:
    usual = candidates.STRATEGIES[goal.objective].concurrencies[0]
    sequences = f"concurrency: {_sequences(plan.concurrency)} of the whole context"
    if goal.concurrency is not None:
        yield f"{sequences}, set by you"
    elif plan.concurrency < usual:
        yield f"{sequences} instead of {usual}, because no more fit"
    elif plan.max_step_rows > plan.concurrency:
        yield f"{sequences}; more run at once where they are shorter, up to {plan.max_step_rows}"
    else:
        yield f"{sequences}, the most that {goal.objective or 'a default'} asks for"


def _step(goal: Goal, plan: Plan) -> Iterator[str]:
    usual = candidates.STRATEGIES[goal.objective].chunks_tokens[0]
    if goal.chunk_tokens is not None:
        yield f"step: {plan.max_step_tokens} tokens, set by you"
    elif plan.max_step_tokens < min(usual, plan.concurrency * plan.context_tokens):
        yield f"step: {plan.max_step_tokens} tokens instead of {usual}, to save workspace"
    else:
        yield f"step: {plan.max_step_tokens} tokens; more would hold up other sequences for longer, ask with --chunk"


def _sequences(count: int) -> str:
    return f"{count} sequence{'s' * (count != 1)}"


def _needed(pricer: Pricer, plan: Plan, formats: ModelFormats) -> str:
    """Return what the plan would need in other formats, everything else as it is."""
    return format_bytes(pricer.total_bytes(replace(_choice(plan), formats=formats)))


def _choice(plan: Plan) -> Choice:
    return Choice(
        formats=plan.formats,
        context_tokens=plan.context_tokens,
        concurrency=plan.concurrency,
        max_step_tokens=plan.max_step_tokens,
        max_step_rows=plan.max_step_rows,
        num_threads=plan.num_threads,
        disk_layers=() if plan.offload is None else plan.offload.layers,
        pinned_blocks=plan.pinned_blocks,
    )
