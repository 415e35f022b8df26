"""Why a plan is what it is, in sentences: for each setting, who chose it and what the alternative would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openautoglm.memory.kv import can_have_kv_format
from openautoglm.planner import candidates
from openautoglm.planner.price import Choice, Pricer
from openautoglm.spec.formats import ActivationScale, AttentionArithmetic, ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.machine import MachineSpec
from openautoglm.spec.plan import BLOCK_TOKENS, Plan
from openautoglm.units import format_bytes


def explain(pricer: Pricer, machine: MachineSpec, goal: Goal, plan: Plan) -> tuple[str, ...]:
    """Return the reasons of a plan, most important first."""
    return (
        *_budget(machine, goal, plan),
        *_format(pricer, goal, plan),
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


def _format(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    layers = plan.formats.layers
    if goal.quant is not None:
        yield f"weights: {layers}, set by you"
    elif layers.number is candidates.AUTOMATIC_FORMATS[0]:
        bf16 = ModelFormats.for_quantisation(NumberFormat.BF16, activations=goal.activations, kv=goal.kv)
        needed = pricer.total_bytes(replace(_choice(plan), formats=bf16))
        yield (
            f"weights: {layers}, the first of int8 and int4 that fits; bf16 would read twice the bytes per token "
            f"and need {format_bytes(needed)}"
        )
    else:
        preferred = candidates.formats(goal)[0]
        needed = pricer.total_bytes(replace(_choice(plan), formats=preferred))
        yield f"weights: {layers}, because {preferred.layers} would need {format_bytes(needed)}"
    if plan.formats.head != layers:
        yield f"weights: head and embeddings stay {plan.formats.head}, where 4 bits cost most quality"
    if plan.formats.activations is ActivationScale.TOKEN:
        yield "activations: one scale per token, set by you; outlier channels then cost precision"
    if plan.formats.attention is AttentionArithmetic.PORTABLE:
        yield "attention: portable, set by you; quantised weights then give equal bytes on every instruction set"


def _kv(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    def per_token(formats: ModelFormats) -> str:
        return format_bytes(pricer.block_bytes(formats) // BLOCK_TOKENS)

    cost = f"KV cache: {plan.formats.kv}, {per_token(plan.formats)} per token"
    other = NumberFormat.BF16 if plan.formats.kv in (NumberFormat.INT8, NumberFormat.FP8) else NumberFormat.INT8
    if not can_have_kv_format(pricer.spec, other):
        yield cost + (", set by you" if goal.kv is not None else "")
        return
    difference = f"{other} would take {per_token(replace(plan.formats, kv=other))}"
    yield f"{cost}, set by you; {difference}" if goal.kv is not None else f"{cost}; {difference}, ask with --kv {other}"


def _context(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    max_positions = pricer.spec.max_positions
    context = f"context: {plan.context_tokens:,} tokens"
    if goal.context_tokens is not None:
        yield f"{context}, set by you (the model takes up to {max_positions:,})"
    elif plan.context_tokens == max_positions:
        yield f"{context}, all that the model takes"
    elif plan.context_tokens < min(max_positions, candidates.DEFAULT_CONTEXT_TOKENS):
        yield f"{context}, smaller than the usual {candidates.DEFAULT_CONTEXT_TOKENS:,} because no more fits"
    elif plan.context_tokens == candidates.DEFAULT_CONTEXT_TOKENS:
        yield f"{context}, the default; the model takes up to {max_positions:,}, ask with --context"
    else:
        yield f"{context}, the most that the budget leaves to {plan.concurrency} sequences"


def _concurrency(goal: Goal, plan: Plan) -> Iterator[str]:
    sequences = f"concurrency: {plan.concurrency} sequence{'s' * (plan.concurrency != 1)} of the whole context"
    if goal.concurrency is not None:
        yield f"{sequences}, set by you"
    elif plan.concurrency < candidates.DEFAULT_CONCURRENCY:
        yield f"{sequences} instead of {candidates.DEFAULT_CONCURRENCY}, because no more fit"
    else:
        yield f"{sequences}; more run at once where they are shorter, up to {plan.max_step_rows}"


def _step(goal: Goal, plan: Plan) -> Iterator[str]:
    if goal.chunk_tokens is not None:
        yield f"step: {plan.max_step_tokens} tokens, set by you"
    elif plan.max_step_tokens < min(candidates.CHUNKS_TOKENS[0], plan.concurrency * plan.context_tokens):
        yield f"step: {plan.max_step_tokens} tokens instead of {candidates.CHUNKS_TOKENS[0]}, to save workspace"


def _choice(plan: Plan) -> Choice:
    return Choice(
        formats=plan.formats,
        context_tokens=plan.context_tokens,
        concurrency=plan.concurrency,
        max_step_tokens=plan.max_step_tokens,
        max_step_rows=plan.max_step_rows,
        num_threads=plan.num_threads,
    )
