"""Which layers a plan leaves on disk: the fewest, evenly, and only where nothing better fits."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner

from openautoglm.cli.goal_options import goal_options
from openautoglm.cli.plan import plan_command
from openautoglm.errors import ConfigError, DoesNotFitError
from openautoglm.memory.offload import layer_disk_bytes, layer_rooms, ring_bytes
from openautoglm.planner.explain import plan_as_dict, plan_table
from openautoglm.planner.offload import predict, spans, spread
from openautoglm.planner.search import make_plan
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import DiskRoom, OffloadMode, Placement, parse_placement
from openautoglm.spec.plan import Component
from openautoglm.units import GIB, MIB
from tests.planner.models import GLM_9B, SMALL, machine
from tests.planner.test_search import parse_command

NUM_LAYERS = GLM_9B.num_layers
INT8 = ModelFormats.for_quantisation(NumberFormat.INT8)


def plan_in(memory_bytes, **wishes):
    return make_plan(GLM_9B, machine(), Goal(memory_bytes=memory_bytes, **wishes), model="m")


def least_in_memory(**wishes):
    """The least budget, by bisection, at which a goal's plan leaves nothing on disk."""
    low, high = 64 * MIB, 64 * GIB
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fits = plan_in(middle, **wishes).offload is None
        except DoesNotFitError:
            fits = False
        low, high = (low, middle) if fits else (middle, high)
    return high


def test_bytes_of_layers_and_ring_are_those_of_their_matrices():
    """GLM-4-9B by hand: 32 query heads, 2 kv heads of 128, hidden 4096, intermediate 13696; 40 layers."""
    matrices = {"qkv": (4608, 4096), "output": (4096, 4096), "gate_up": (27392, 4096), "down": (4096, 13696)}

    def packed(outputs, inputs):
        return outputs // 32 * (32 * inputs + 128)

    layer = sum(packed(*shape) for shape in matrices.values())
    assert layer_disk_bytes(GLM_9B, INT8) == (layer,) * 40
    largest, rooms = packed(*matrices["gate_up"]), 4 * 4096
    for num_layers in (2, 40):
        ring = ring_bytes(layer_rooms(GLM_9B, INT8)[:num_layers])
        assert layer + largest + rooms <= ring <= layer + largest + rooms + 6 * 4096
    assert layer + rooms <= ring_bytes(layer_rooms(GLM_9B, INT8)[7:8]) <= layer + 2 * rooms
    assert ring_bytes(()) == 0


def test_int4_in_memory_beats_int8_on_disk():
    budget = least_in_memory(context_tokens=2048, concurrency=1, quant=NumberFormat.INT4)
    plan = plan_in(budget, context_tokens=2048, concurrency=1)
    assert plan.offload is None
    assert plan.formats.layers.number is NumberFormat.INT4


@pytest.mark.parametrize("share", [0.99, 0.7, 0.5])
def test_the_fewest_layers_go_and_the_budget_holds(share):
    wishes = {"context_tokens": 2048, "concurrency": 1, "quant": NumberFormat.INT8, "chunk_tokens": 64}
    budget = int(share * least_in_memory(**wishes))
    plan = plan_in(budget, **wishes)
    assert plan.formats.layers.number is NumberFormat.INT8
    assert plan.breakdown.total_bytes <= budget
    num_layers = len(plan.offload.layers)
    fewer = ",".join(f"layers.{layer}=disk" for layer in spread(GLM_9B, Goal(), num_layers - 1))
    pinned = ",".join(f"layers.{layer}=memory" for layer in range(40) if f"layers.{layer}=" not in fewer)
    placement = parse_placement(",".join(filter(None, (fewer, pinned))))
    with pytest.raises(DoesNotFitError):
        plan_in(budget, placement=placement, **wishes)
    in_memory = plan_in(16 * GIB, **wishes)
    assert in_memory.breakdown.layer_weight_bytes == plan.breakdown.layer_weight_bytes + plan.offload.disk_bytes
    assert plan.breakdown.ring_bytes == ring_bytes(layer_rooms(GLM_9B, INT8)[: len(plan.offload.layers)])


def test_a_model_of_twice_the_budget_has_a_plan():
    everything = plan_in(64 * GIB, context_tokens=2048, concurrency=1, quant=NumberFormat.INT8)
    budget = everything.breakdown.weight_bytes // 2
    plan = plan_in(budget, quant=NumberFormat.INT8)
    assert plan.breakdown.total_bytes <= budget
    assert plan.context_tokens == 2048  # a usable context comes before layers in memory
    assert plan.concurrency == 1
    assert any("because nothing that may be chosen fits in memory" in reason for reason in plan.reasons)


def test_smaller_budgets_never_give_more():
    """From plenty to nothing: the context, and the layers in memory within a format and context, only shrink."""
    best = None
    for budget in range(8 * GIB, GIB, -96 * MIB):
        try:
            plan = plan_in(budget)
        except DoesNotFitError:
            break
        now = (plan.context_tokens, -len(plan.offload.layers) if plan.offload else 0)
        assert best is None or now[0] <= best[0]
        assert best is None or now[0] < best[0] or now[1] <= best[1] or plan.max_step_tokens < best[2]
        best = (*now, plan.max_step_tokens)
    assert best[1] < -NUM_LAYERS // 2


def test_disk_rather_than_less():
    plan = plan_in(6 * GIB, offload=OffloadMode.DISK)
    assert (plan.formats.layers.number, plan.context_tokens, plan.concurrency) == (NumberFormat.INT8, 8192, 8)
    assert plan.offload.layers
    assert any("as you set" in reason for reason in plan.reasons)
    roomy = plan_in(32 * GIB, offload=OffloadMode.DISK)
    assert roomy.offload is None
    assert any("no layer stays on disk" in reason for reason in roomy.reasons)


def test_tiny_layers_that_fit_in_memory_need_not_fit_beside_a_ring():
    """All of them on disk take more for their ring than they free: what fits exactly must still fit."""
    wishes = {"quant": NumberFormat.INT4, "context_tokens": 256, "concurrency": 1, "chunk_tokens": 64}
    roomy = make_plan(SMALL, machine(), Goal(memory_bytes=GIB, **wishes), model="m")
    tight = Goal(memory_bytes=roomy.breakdown.total_bytes, offload=OffloadMode.DISK, **wishes)
    assert make_plan(SMALL, machine(), tight, model="m").offload is None


def test_none_is_a_refusal_with_the_plan_on_disk_as_a_suggestion():
    with pytest.raises(DoesNotFitError) as caught:
        plan_in(3 * GIB, offload=OffloadMode.NONE)
    (command,) = (command for command in caught.value.suggestions if "--offload auto" in command)
    assert "layers on disk" in str(caught.value)
    _, goal = parse_command(command)
    plan = make_plan(GLM_9B, machine(), goal, model="m")
    assert plan.offload.layers
    assert plan.breakdown.total_bytes <= 3 * GIB


def test_places_of_the_user_are_kept():
    placement = parse_placement("layers.20-27=disk, layers.0=memory,layers.3=disk")
    assert placement == Placement(disk=(3, *range(20, 28)), memory=(0,))
    assert parse_placement(str(placement)) == placement
    plan = plan_in(32 * GIB, placement=placement)
    assert plan.offload.layers == (3, *range(20, 28))
    assert any("set by you" in reason for reason in plan.reasons if reason.startswith("offload"))
    tight = plan_in(4 * GIB, placement=placement, quant=NumberFormat.INT8)
    assert set(tight.offload.layers) > set(placement.disk)
    assert 0 not in tight.offload.layers


@pytest.mark.parametrize(
    "text",
    ["", "layers.1", "layers=disk", "layer.1=disk", "layers.3-1=disk", "layers.1=gpu", "layers.-1=disk", "head=disk",
     "layers.1=disk,", "layers.1-4=disk,layers.4=memory", "layers.1=disk layers.2=disk", "layers.٣=disk"],
)  # fmt: skip
def test_other_places_are_refused(text):
    with pytest.raises(ConfigError, match="layer"):
        parse_placement(text)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="layers 0-39"):
        plan_in(32 * GIB, placement=parse_placement("layers.38-40=disk"))
    with pytest.raises(ConfigError, match="drop one"):
        plan_in(32 * GIB, placement=parse_placement("layers.1=disk"), offload=OffloadMode.NONE)
    assert plan_in(32 * GIB, placement=parse_placement("layers.1=memory"), offload=OffloadMode.NONE).offload is None


def test_layers_are_spread_evenly():
    assert spread(GLM_9B, Goal(), 0) == ()
    assert spread(GLM_9B, Goal(), 4) == (5, 15, 25, 35)
    assert spread(GLM_9B, Goal(), NUM_LAYERS) == tuple(range(NUM_LAYERS))
    for num_layers in range(1, NUM_LAYERS):
        layers = spread(GLM_9B, Goal(), num_layers)
        assert len(layers) == num_layers
        gaps = [later - earlier for earlier, later in itertools.pairwise(layers)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    goal = Goal(placement=Placement(disk=(0, 1), memory=(39,)))
    assert spread(GLM_9B, goal, 37) == tuple(range(39))
    assert spans((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"


@pytest.mark.parametrize(("disk", "memory", "limit"), [(GIB, 40 * GIB, "the disk"), (40 * GIB, 2 * GIB, "memory")])
def test_the_speed_is_that_of_the_slower_of_disk_and_memory(disk, memory, limit):
    plan = plan_in(6 * GIB, offload=OffloadMode.DISK)
    plan = predict(plan, disk_bytes_per_second=disk, memory_bytes_per_second=memory, direct=True, write_seconds=12.4)
    read = layer_disk_bytes(GLM_9B, INT8)[0] * 40 + plan.breakdown.head_weight_bytes
    seconds = sorted((plan.offload.disk_bytes / disk, read / (0.75 * memory)))
    assert plan.offload.speed.tokens_per_second == pytest.approx(1 / (seconds[1] + 0.3 * seconds[0]), rel=1e-6)
    assert any(f"limited by {limit}" in reason for reason in plan.reasons)
    assert f"{plan.offload.speed.tokens_per_second:.2f} tokens/s" in plan_table(plan)
    assert "weights: ring" in plan_table(plan)
    answer = json.loads(json.dumps(plan_as_dict(plan)))
    assert answer["offload"]["tokens_per_second"] == plan.offload.speed.tokens_per_second
    assert answer["offload"]["layers"] == list(plan.offload.layers)
    assert answer["offload"]["direct_reads"] is True
    assert answer["breakdown"]["ring_bytes"] == plan.offload.ring_bytes
    assert answer["offload"]["write_seconds"] == 12.4
    assert any("first load: writes a file" in reason and "about 12 s" in reason for reason in plan.reasons)
    slow = predict(
        replace(plan, reasons=()),
        disk_bytes_per_second=1,
        memory_bytes_per_second=1,
        direct=False,
        write_seconds=0.0,
    )
    assert any("stands on the disk already" in reason for reason in slow.reasons)
    assert any("no direct reads" in reason for reason in slow.reasons)


def packed_bytes(quant=NumberFormat.INT8):
    """The file of GLM_9B by hand: header and vectors below a page or two, tables, and 40 layers."""
    plan = plan_in(64 * GIB, quant=quant, context_tokens=2048, concurrency=1)
    (part,) = (part for part in plan.breakdown.parts_of(Component.DISK) if part.name == "packed weights")
    assert 0 <= part.num_bytes - plan.breakdown.weight_bytes < MIB
    return part.num_bytes


def planned_with(room, memory_bytes=3 * GIB, **wishes):
    return make_plan(GLM_9B, machine(), Goal(memory_bytes=memory_bytes, **wishes), model="m", disk_room=room)


def test_a_disk_that_cannot_hold_the_file_takes_no_layers():
    wishes = {"quant": NumberFormat.INT8, "context_tokens": 2048, "concurrency": 1}
    needed = packed_bytes()
    for room in (
        DiskRoom(directory="/disk", free_bytes=needed),
        DiskRoom(directory="/disk", free_bytes=0, file_sizes=frozenset({needed})),
    ):
        offload = planned_with(room, **wishes).offload
        assert offload is not None
        assert offload.file_bytes == needed
    small = DiskRoom(directory="/disk", free_bytes=needed - 1, file_sizes=frozenset({needed - 1}))
    with pytest.raises(DoesNotFitError, match=r"/disk can take .*--offload-dir") as caught:
        planned_with(small, **wishes)
    assert not any("--offload" in command for command in caught.value.suggestions)
    with pytest.raises(DoesNotFitError) as forbidden:
        planned_with(small, offload=OffloadMode.NONE, **wishes)
    assert not any("--offload auto" in command for command in forbidden.value.suggestions)
    # A format whose file the disk holds is taken instead, where the goal leaves it open.
    open_format = planned_with(small)
    assert open_format.offload is not None
    assert open_format.formats.layers.number is NumberFormat.INT4
    # In memory no disk is asked.
    assert planned_with(small, memory_bytes=64 * GIB).offload is None


def test_layers_that_the_user_places_on_a_full_disk_are_refused_with_a_way_out():
    full = DiskRoom(directory="/disk", free_bytes=0)
    with pytest.raises(DoesNotFitError, match="in memory alone it would") as caught:
        planned_with(full, memory_bytes=12 * GIB, placement=Placement(disk=(1, 2)))
    _, goal = parse_command(caught.value.suggestions[0])
    assert make_plan(GLM_9B, machine(), goal, model="m", disk_room=full).offload is None


def test_disk_rather_than_less_says_why_it_takes_less():
    full = DiskRoom(directory="/disk", free_bytes=0)
    plan = planned_with(full, memory_bytes=8 * GIB, offload=OffloadMode.DISK)
    assert plan.offload is None
    assert any("because /disk can take only 0 B" in reason for reason in plan.reasons)
    with pytest.raises(DoesNotFitError, match=r"/disk can take 0 B"):
        planned_with(full, memory_bytes=3 * GIB, offload=OffloadMode.DISK)


def test_plans_without_layers_on_disk_say_so():
    assert plan_as_dict(plan_in(32 * GIB))["offload"] is None
    assert "ring" not in plan_table(plan_in(32 * GIB))


def test_the_options_make_a_goal():
    seen = []

    @click.command()
    @goal_options
    def capture(goal):
        seen.append(goal)

    words = ["--offload", "disk", "--place", "layers.1-2=disk", "--offload-dir", "/some/where"]
    CliRunner().invoke(capture, words, catch_exceptions=False)
    assert seen[0] == Goal(offload=OffloadMode.DISK, placement=Placement(disk=(1, 2)), offload_directory="/some/where")
    assert CliRunner().invoke(capture, ["--offload", "gpu"]).exit_code == 2
    CliRunner().invoke(capture, ["--offload"], catch_exceptions=False)
    assert seen[1].offload is OffloadMode.DISK


@pytest.mark.parametrize("words", [["--offload", "disk"], ["--place", "layers.1=disk"], ["--offload-dir", "/x"]])
def test_devices_that_are_only_described_have_no_disk(words):
    result = CliRunner().invoke(plan_command, ["demo", "--device", "8GiB", *words])
    assert isinstance(result.exception, ConfigError)
    assert words[0] in str(result.exception)
