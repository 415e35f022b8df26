"""What an objective promises: its own measure is never below another objective's, budgets are monotone, wishes stay."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import DoesNotFitError
from openautoglm.planner.search import make_plan
from openautoglm.spec.formats import KV_NUMBERS, NumberFormat
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.offload import OffloadMode
from openautoglm.units import GIB, MIB
from tests.planner.models import GLM_9B, QWEN3_06B, SMALL, decoder, machine

ROOMY = decoder(
    num_layers=4,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=64,
    intermediate=1024,
    vocab=8000,
    max_positions=65536,
    tied=True,
)
SPECS = st.sampled_from([GLM_9B, QWEN3_06B, SMALL, ROOMY])
BUDGETS = st.integers(160 * MIB, 64 * GIB)
OBJECTIVES = [None, *Objective]
# From best to worst; what a user may also set is not among them.
QUALITY_ORDER = ["bf16", "int8", "int4-g32", "int4-g64"]


@st.composite
def open_goals(draw):
    """Goals with something left to choose, all weights in memory: objectives promise nothing of layers on disk."""
    return Goal(
        memory_bytes=draw(BUDGETS),
        context_tokens=draw(st.sampled_from([None, None, 1024, 2048])),
        concurrency=draw(st.sampled_from([None, None, 1, 3, 20])),
        quant=draw(st.sampled_from([None, None, NumberFormat.INT8, NumberFormat.INT4, NumberFormat.BF16])),
        kv=draw(st.sampled_from([None, None, *KV_NUMBERS])),
        chunk_tokens=draw(st.sampled_from([None, None, 100])),
        num_threads=2,
        offload=OffloadMode.NONE,
    )


def plan_for(spec, goal, objective, more=0):
    """Return the plan, None where nothing fits."""
    wished = replace(goal, objective=objective, memory_bytes=goal.memory_bytes + more)
    try:
        return make_plan(spec, machine(), wished, model="m")
    except DoesNotFitError:
        return None


def rank(plan):
    return -QUALITY_ORDER.index(str(plan.formats.layers))


def weight_bytes_read(plan):
    return plan.breakdown.layer_weight_bytes + plan.breakdown.head_weight_bytes


@settings(max_examples=150, deadline=None)
@given(spec=SPECS, goal=open_goals(), objective=st.sampled_from(OBJECTIVES))
def test_what_the_user_set_stays(spec, goal, objective):
    plan = plan_for(spec, goal, objective)
    if plan is None:
        return
    assert plan.breakdown.total_bytes <= goal.memory_bytes
    assert goal.context_tokens in (None, plan.context_tokens)
    assert goal.concurrency in (None, plan.concurrency)
    assert goal.quant in (None, plan.formats.layers.number)
    assert goal.kv in (None, plan.formats.kv)
    assert goal.chunk_tokens in (None, plan.max_step_tokens)
    assert 1 <= plan.context_tokens <= spec.max_positions
    for name, value in (("context", goal.context_tokens), ("concurrency", goal.concurrency), ("KV cache", goal.kv)):
        reason = next(reason for reason in plan.reasons if reason.startswith(f"{name}:"))
        assert ("set by you" in reason) is (value is not None)


@settings(max_examples=200, deadline=None)
@given(spec=SPECS, goal=open_goals(), objective=st.sampled_from(OBJECTIVES), more=st.integers(0, 16 * GIB))
def test_more_memory_never_gives_less_of_what_is_wanted(spec, goal, objective, more):
    poor, rich = plan_for(spec, goal, objective), plan_for(spec, goal, objective, more)
    if poor is None:
        return
    assert rich is not None
    match objective:
        case Objective.QUALITY:
            if goal.quant is None:
                assert rank(rich) >= rank(poor)
        case Objective.THROUGHPUT:
            assert (rich.context_tokens, rich.concurrency) >= (poor.context_tokens, poor.concurrency)
        case _:
            assert rich.context_tokens >= poor.context_tokens


@settings(max_examples=200, deadline=None)
@given(spec=SPECS, goal=open_goals(), other=st.sampled_from(OBJECTIVES))
def test_each_objective_is_the_best_at_what_it_says(spec, goal, other):
    rival = plan_for(spec, goal, other)
    if rival is None:
        return
    longest = plan_for(spec, goal, Objective.CONTEXT)
    assert longest is not None
    assert longest.context_tokens >= rival.context_tokens
    busiest = plan_for(spec, goal, Objective.THROUGHPUT)
    assert busiest is not None
    assert busiest.concurrency >= min(64, rival.concurrency)
    finest = plan_for(spec, goal, Objective.QUALITY)
    assert finest is not None
    if goal.quant is None and rival.context_tokens >= min(2048, spec.max_positions):
        assert rank(finest) >= rank(rival)
    quickest = plan_for(spec, goal, Objective.LATENCY)
    if quickest is not None and goal.quant is None:
        assert weight_bytes_read(quickest) <= weight_bytes_read(rival)
        if goal.chunk_tokens is None and goal.concurrency is None:
            assert quickest.max_step_tokens <= max(128, rival.max_step_tokens)


@pytest.mark.parametrize("objective", Objective)
def test_the_choice_is_explained(objective):
    plan = make_plan(GLM_9B, machine(16 * GIB), Goal(objective=objective), model="m")
    assert any(reason.startswith(f"objective: {objective}, set by you") for reason in plan.reasons)
    for subject in ("budget", "weights", "quality", "KV cache", "context", "concurrency", "step"):
        assert any(reason.startswith(f"{subject}:") for reason in plan.reasons), subject


def test_objectives_differ_on_a_machine_with_some_room():
    plans = {
        objective: make_plan(GLM_9B, machine(24 * GIB), Goal(objective=objective), model="m")
        for objective in OBJECTIVES
    }
    assert str(plans[Objective.QUALITY].formats.layers) == "bf16"
    assert str(plans[Objective.LATENCY].formats.layers) == "int4-g64"
    assert plans[Objective.LATENCY].max_step_tokens == 128
    assert plans[Objective.THROUGHPUT].concurrency == 64
    assert plans[Objective.CONTEXT].context_tokens == GLM_9B.max_positions
    assert (plans[None].context_tokens, plans[None].concurrency) == (8192, 8)


def test_context_takes_all_that_is_free_without_being_given_a_budget():
    plan = make_plan(GLM_9B, machine(8 * GIB), Goal(objective=Objective.CONTEXT), model="m")
    wider = make_plan(GLM_9B, machine(), Goal(context_tokens=plan.context_tokens + 2048, concurrency=1), model="m")
    assert plan.concurrency == 1
    assert plan.context_tokens > 60_000
    assert wider.breakdown.kv_bytes > plan.breakdown.kv_bytes


def test_throughput_gives_up_context_before_it_gives_up_int8_weights():
    plan = make_plan(QWEN3_06B, machine(6 * GIB), Goal(objective=Objective.THROUGHPUT), model="m")
    assert plan.context_tokens == 4096
    assert plan.concurrency > 8
