"""What a plan promises: it fits, it keeps what the user set, it explains itself, and its refusals help."""

import shlex
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.cli.goal_options import goal_options
from openautoglm.errors import ConfigError, DoesNotFitError
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe
from openautoglm.planner.limits import largest_concurrency, largest_context
from openautoglm.planner.price import Choice, Pricer
from openautoglm.planner.search import make_plan
from openautoglm.spec.formats import KV_NUMBERS, ActivationScale, ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode
from openautoglm.units import GIB, MIB
from tests.planner.models import ARCHITECTURES, GLM_9B, QWEN3_06B, SMALL, machine

BUDGETS = st.integers(64 * MIB, 96 * GIB)
SPECS = st.sampled_from(ARCHITECTURES)
QUANTS = st.sampled_from([None, NumberFormat.BF16, NumberFormat.INT8, NumberFormat.INT4, NumberFormat.NF4])


@st.composite
def goals(draw):
    quant = draw(QUANTS)
    grouped = quant in (NumberFormat.INT4, NumberFormat.NF4)
    return Goal(
        memory_bytes=draw(BUDGETS),
        context_tokens=draw(st.none() | st.integers(1, 2048)),
        concurrency=draw(st.none() | st.integers(1, 64)),
        quant=quant,
        group=draw(st.sampled_from([None, 32, 64, 128])) if grouped else None,
        activations=draw(st.sampled_from(list(ActivationScale))),
        kv=draw(st.sampled_from([None, None, *KV_NUMBERS])),
        num_threads=draw(st.none() | st.integers(1, 16)),
        offload=draw(st.sampled_from(list(OffloadMode))),
    )


def parse_command(command):
    """Return (model, Goal) of a suggested command, parsed by the options of the real command line."""
    seen = []

    @click.command()
    @click.argument("model")
    @goal_options
    def capture(model, goal):
        seen.append((model, goal))

    words = shlex.split(command)
    assert words[:2] == ["openautoglm", "plan"]
    CliRunner().invoke(capture, words[2:], catch_exceptions=False)
    return seen[0]


def attempt(spec, goal):
    """Return (plan, None) or (None, refusal)."""
    try:
        return make_plan(spec, machine(), goal, model="m"), None
    except DoesNotFitError as refusal:
        return None, refusal


def assert_helps(spec, refusal):
    """Every suggestion of a refusal, typed as it stands, fits."""
    assert len(refusal.suggestions) >= 3
    for command in refusal.suggestions:
        model, suggested = parse_command(command)
        assert model == "m"
        assert command in str(refusal)
        plan = make_plan(spec, machine(), suggested, model="m")
        assert plan.breakdown.total_bytes <= suggested.memory_bytes


@settings(max_examples=150, deadline=None)
@given(spec=SPECS, goal=goals())
def test_a_plan_fits_and_keeps_what_the_user_set(spec, goal):
    plan, refusal = attempt(spec, goal)
    if refusal is not None:
        assert_helps(spec, refusal)
        return
    assert plan.breakdown.total_bytes <= plan.budget_bytes == goal.memory_bytes
    assert goal.context_tokens in (None, plan.context_tokens)
    assert goal.concurrency in (None, plan.concurrency)
    assert goal.quant in (None, plan.formats.layers.number)
    assert goal.group in (None, plan.formats.layers.group)
    assert plan.formats.activations is goal.activations
    assert plan.num_threads == (goal.num_threads or 4)
    assert 1 <= plan.context_tokens <= plan.max_context_tokens <= spec.max_positions
    assert 1 <= plan.concurrency <= plan.max_concurrency
    assert plan.num_blocks == plan.concurrency * -(-plan.context_tokens // 16)
    assert plan.concurrency <= plan.max_step_rows <= plan.max_step_tokens
    assert plan.reasons


@settings(max_examples=150, deadline=None)
@given(spec=SPECS, goal=goals(), more=st.integers(0, 32 * GIB))
def test_a_bigger_budget_never_gives_less(spec, goal, more):
    bigger = replace(goal, memory_bytes=goal.memory_bytes + more)
    plan, refusal = attempt(spec, goal)
    if refusal is not None:
        return
    richer = make_plan(spec, machine(), bigger, model="m")
    assert richer.context_tokens >= plan.context_tokens
    order = [(weights, kv) for weights in ("int4-g64", "int8") for kv in ("int8", "bf16")]
    automatic = goal.quant is None and goal.kv is None
    if automatic and (richer.context_tokens, richer.concurrency) == (plan.context_tokens, plan.concurrency):
        before, after = (order.index((str(one.formats.layers), str(one.formats.kv))) for one in (plan, richer))
        assert after >= before


@settings(max_examples=100, deadline=None)
@given(
    spec=SPECS,
    quant=st.sampled_from([NumberFormat.INT8, NumberFormat.INT4]),
    budget=st.integers(1 * GIB, 64 * GIB),
    concurrency=st.integers(1, 40),
    context=st.integers(1, 2048),
    kv=st.sampled_from(KV_NUMBERS),
)
def test_the_reported_limits_are_exact(spec, quant, budget, concurrency, context, kv):
    pricer = Pricer(spec)
    choice = Choice(
        formats=ModelFormats.for_quantisation(quant, kv=kv),
        context_tokens=context,
        concurrency=concurrency,
        max_step_tokens=128,
        max_step_rows=40,
        num_threads=2,
    )
    largest = largest_context(pricer, choice, budget)
    if largest:
        assert pricer.fits(replace(choice, context_tokens=largest), budget)
    if largest < spec.max_positions:
        assert not pricer.fits(replace(choice, context_tokens=largest + 16), budget)
    most = largest_concurrency(pricer, choice, budget)
    rows = max(40, most)
    if most:
        fitting = replace(choice, concurrency=most, max_step_rows=rows, max_step_tokens=max(128, rows))
        assert pricer.fits(fitting, budget)
    if most < 4096:
        rows = max(40, most + 1)
        wider = replace(choice, concurrency=most + 1, max_step_rows=rows, max_step_tokens=max(128, rows))
        assert not pricer.fits(wider, budget)


def test_defaults_on_a_machine_with_room():
    plan = make_plan(GLM_9B, machine(20 * GIB), Goal(), model="m")
    assert plan.budget_bytes == 20 * GIB
    assert (plan.context_tokens, plan.concurrency) == (8192, 8)
    assert plan.formats.layers.number is NumberFormat.INT8
    assert plan.max_step_tokens == 512
    assert any("bf16 would read twice" in reason for reason in plan.reasons)


def test_int4_where_int8_does_not_fit():
    plan = make_plan(GLM_9B, machine(9 * GIB), Goal(), model="m")
    assert str(plan.formats.layers) == "int4-g64"
    assert str(plan.formats.head) == "int8"
    assert (plan.context_tokens, plan.concurrency) == (8192, 8)
    assert any("int8 would need" in reason for reason in plan.reasons)


def test_the_better_format_is_kept_where_the_cache_is_what_is_too_big():
    """First the cache gives way, which costs less quality than smaller weights; then sequences."""
    plan = make_plan(QWEN3_06B, machine(5 * GIB), Goal(), model="m")
    assert (plan.formats.layers.number, plan.formats.kv) == (NumberFormat.INT8, NumberFormat.INT8)
    assert (plan.context_tokens, plan.concurrency) == (8192, 8)
    assert any("because bf16 would take 112 KiB and need" in reason for reason in plan.reasons)
    kept = make_plan(QWEN3_06B, machine(4 * GIB), Goal(kv=NumberFormat.BF16), model="m")
    assert (kept.formats.layers.number, kept.formats.kv) == (NumberFormat.INT8, NumberFormat.BF16)
    assert (kept.context_tokens, kept.concurrency) == (8192, 3)


def test_a_given_budget_is_used_and_a_guessed_one_is_not():
    guessed = make_plan(GLM_9B, machine(30 * GIB), Goal(), model="m")
    given_ = make_plan(GLM_9B, machine(30 * GIB), Goal(memory_bytes=30 * GIB), model="m")
    assert guessed.context_tokens == 8192
    assert given_.context_tokens > 40_000
    assert given_.context_tokens % 1024 == 0
    everything = make_plan(SMALL, machine(), Goal(memory_bytes=1 * GIB), model="m")
    assert (everything.context_tokens, everything.concurrency) == (2048, 32)


def test_a_control_group_bounds_the_budget():
    plan = make_plan(SMALL, machine(20 * GIB, limit_bytes=1 * GIB), Goal(), model="m")
    assert plan.budget_bytes == 1 * GIB
    assert any("control group" in reason for reason in plan.reasons)


def test_a_budget_beyond_the_machine_is_planned_and_said():
    plan = make_plan(GLM_9B, machine(2 * GIB), Goal(memory_bytes=30 * GIB), model="m")
    assert any("only 2.00 GiB" in reason for reason in plan.reasons)


def test_tight_memory_narrows_the_step_first():
    goal = Goal(context_tokens=512, concurrency=4)
    roomy = make_plan(QWEN3_06B, machine(), goal, model="m")
    enough = roomy.breakdown.total_bytes
    same = make_plan(QWEN3_06B, machine(), replace(goal, memory_bytes=enough), model="m")
    fewer_rows = make_plan(QWEN3_06B, machine(), replace(goal, memory_bytes=enough - MIB), model="m")
    short_steps = make_plan(QWEN3_06B, machine(), replace(goal, memory_bytes=enough - 22 * MIB), model="m")
    assert (same.max_step_tokens, same.max_step_rows) == (roomy.max_step_tokens, roomy.max_step_rows) == (512, 32)
    assert (fewer_rows.max_step_tokens, fewer_rows.max_step_rows) == (512, 4)
    assert 64 <= short_steps.max_step_tokens < 512
    assert short_steps.formats == roomy.formats
    assert any("to save workspace" in reason for reason in short_steps.reasons)


def test_a_chunk_of_the_users_is_kept():
    plan = make_plan(SMALL, machine(), Goal(chunk_tokens=5, concurrency=8), model="m")
    assert (plan.max_step_tokens, plan.max_step_rows) == (5, 5)
    assert plan.concurrency == 8


def test_unsupported_models_are_planned():
    plan = make_plan(SMALL, machine(), Goal(), model="m", unsupported=("vision tower",))
    assert not plan.runnable
    assert plan.unsupported == ("vision tower",)


def test_a_refusal_shows_components_budget_and_shortfall():
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(GLM_9B, machine(), Goal(memory_bytes=2 * GIB, offload=OffloadMode.NONE), model="my/model")
    message = str(caught.value)
    for part in ("weights: layers", "KV cache", "workspace", "runtime", "headroom", "2.00 GiB", "short", "my/model"):
        assert part in message
    assert caught.value.exit_code == 3
    assert any("--memory" in command for command in caught.value.suggestions)


def test_an_int8_cache_is_suggested_where_it_fits():
    """Budget between the two: context and concurrency can stay, and the command says what it takes."""
    goal = Goal(
        quant=NumberFormat.INT4,
        context_tokens=16384,
        concurrency=8,
        kv=NumberFormat.BF16,
        offload=OffloadMode.NONE,
    )
    half = make_plan(GLM_9B, machine(), replace(goal, kv=NumberFormat.INT8, memory_bytes=64 * GIB), model="m")
    budget = half.breakdown.total_bytes
    chosen = make_plan(GLM_9B, machine(), replace(goal, kv=None, memory_bytes=budget), model="m")
    assert chosen.formats.kv is NumberFormat.INT8
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(GLM_9B, machine(), replace(goal, memory_bytes=budget), model="m")
    command = (
        f"openautoglm plan m --memory {budget}B --quant int4 --context 16384 --concurrency 8 --kv int8 --offload none"
    )
    assert command in caught.value.suggestions
    line = next(line for line in str(caught.value).splitlines() if line.strip().startswith(f"{command} "))
    assert "int8 KV cache" in line
    assert parse_command(command)[1].kv is NumberFormat.INT8
    assert half.breakdown.kv_bytes == 8 * 1024 * 16 * 40 * 2 * 2 * (128 + 4)


def test_plans_say_what_a_token_of_the_cache_takes():
    automatic = make_plan(GLM_9B, machine(), Goal(), model="m")
    assert "KV cache: bf16, 40.0 KiB per token; int8 would take 20.6 KiB, ask with --kv int8" in automatic.reasons
    chosen = make_plan(GLM_9B, machine(), Goal(kv=NumberFormat.FP8), model="m")
    assert "KV cache: fp8, 20.6 KiB per token, set by you; bf16 would take 40.0 KiB" in chosen.reasons
    assert chosen.formats.kv is NumberFormat.FP8


def test_latents_keep_their_cache():
    spec = describe(debug_config("glm_moe_dsa"))
    with pytest.raises(ConfigError, match="latents"):
        make_plan(spec, machine(), Goal(kv=NumberFormat.INT8), model="m")
    assert any(reason.startswith("KV cache: bf16") for reason in make_plan(spec, machine(), Goal(), model="m").reasons)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(spec, machine(), Goal(memory_bytes=GIB // 8), model="m")
    assert not any("--kv" in command for command in caught.value.suggestions)


@pytest.mark.parametrize(
    ("goal", "word"),
    [
        (Goal(context_tokens=131073), "131,072"),
        (Goal(context_tokens=0), "context"),
        (Goal(concurrency=-1), "concurrency"),
        (Goal(memory_bytes=0), "memory"),
        (Goal(num_threads=0), "threads"),
        (Goal(chunk_tokens=0), "chunk"),
        (Goal(quant=NumberFormat.INT4, group=48), "32, 64, 128"),
        (Goal(quant=NumberFormat.INT8, group=64), "int4"),
        (Goal(group=64), "auto"),
        (Goal(quant=NumberFormat.FP8), "fp8 is a format of the KV cache, not of weights"),
        (Goal(kv=NumberFormat.INT4), "no KV cache has the format int4"),
    ],
)
def test_goals_that_no_budget_could_meet(goal, word):
    with pytest.raises(ConfigError, match=word):
        make_plan(GLM_9B, machine(), goal, model="m")
