"""Parts of a breakdown: they add up, their names are those of the native core, and files are as large as said."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from openautoglm.checkpoint.packed import PackedCache
from openautoglm.engine.assemble import EngineOptions, open_engine, prepare
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe
from openautoglm.memory.runtime import RuntimeNeeds, estimated_tokenizer
from openautoglm.planner.price import Choice, Pricer
from openautoglm.planner.search import make_plan
from openautoglm.probe.page_cache import cached_bytes
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import Placement
from openautoglm.spec.plan import Breakdown, Component
from openautoglm.units import GIB, MIB
from tests.planner.models import GLM_9B, machine

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())


def priced(spec, quant, kv=NumberFormat.BF16, *, context=2048, concurrency=3, server=False):
    choice = Choice(
        formats=ModelFormats.for_quantisation(quant, kv=kv),
        context_tokens=context,
        concurrency=concurrency,
        max_step_tokens=256,
        max_step_rows=8,
        num_threads=2,
    )
    return Pricer(spec, RuntimeNeeds(tokenizer=estimated_tokenizer(spec.vocab_size), server=server)).detailed(choice)


def sums_of(breakdown: Breakdown) -> Counter[Component]:
    """What the parts of each component add up to."""
    known: Counter[Component] = Counter()
    for part in breakdown.parts:
        known[part.component] += part.num_bytes
    return known


@pytest.mark.parametrize("quant", [NumberFormat.BF16, NumberFormat.INT8, NumberFormat.INT4, NumberFormat.NF4])
@pytest.mark.parametrize("name", FIXTURES)
def test_parts_add_up_for_every_published_shape(name, quant):
    breakdown = priced(describe(FIXTURES[name]["config"]), quant, server=True)
    known = sums_of(breakdown)
    assert known[Component.WEIGHTS] == breakdown.weight_bytes
    assert known[Component.KV] == breakdown.kv_bytes
    assert known[Component.WORKSPACE] == breakdown.workspace_bytes
    assert known[Component.RUNTIME] == breakdown.runtime_bytes
    assert all(part.num_bytes > 0 for part in breakdown.parts)
    assert len({(part.component, part.name, part.detail) for part in breakdown.parts}) == len(breakdown.parts)


def sizes(breakdown, component):
    return {part.name: part.num_bytes for part in breakdown.parts_of(component)}


def test_kinds_of_layers_have_their_own_cache():
    """Against the published number of layers of each kind and their sizes."""
    gemma = sizes(priced(describe(FIXTURES["gemma-3-1b"]["config"]), NumberFormat.INT8), Component.KV)
    token = 2 * 1 * 256 * 2  # one kv head of 256, key and value, bf16
    assert gemma == {"sliding window": 22 * 3 * 2048 * token, "full attention": 4 * 3 * 2048 * token}
    latent = sizes(priced(describe(debug_config("glm_moe_dsa")), NumberFormat.INT8), Component.KV)
    assert latent == {"latent": 3 * 2048 * 3 * (24 + 8) * 2, "indexer keys": 3 * 2048 * 2 * 16 * 2}
    hybrid = sizes(priced(describe(debug_config("glm5_next")), NumberFormat.INT8), Component.KV)
    assert hybrid["recurrent state"] == 3 * 3 * 4 * (4 * 16 * 16 + 3 * 3 * 4 * 16)
    assert set(hybrid) == {"latent", "indexer keys", "recurrent state"}


def test_mixtures_tell_experts_from_what_every_token_reads():
    groups = sizes(priced(describe(FIXTURES["GLM-4.5-Air"]["config"]), NumberFormat.INT8), Component.WEIGHTS)
    experts = 45 * 128 * 3 * 4096 * 1408
    assert groups["experts"] == pytest.approx(experts, rel=0.01)
    assert groups["shared experts"] == pytest.approx(45 * 3 * 4096 * 1408, rel=0.01)
    assert groups["MLP"] == pytest.approx(3 * 4096 * 10944, rel=0.01)  # the first layer is dense
    assert groups["routers and indexers"] == 45 * 128 * 4096 * 4


def test_a_server_has_one_part_more():
    names = [part.name for part in priced(GLM_9B, NumberFormat.INT8, server=True).parts_of(Component.RUNTIME)]
    assert names == ["process", "tokenizer", "chat templates", "HTTP process", "block index"]


def test_unquantised_weights_leave_no_packed_file():
    assert set(sizes(priced(GLM_9B, NumberFormat.BF16), Component.DISK)) == {"checkpoint"}
    assert set(sizes(priced(GLM_9B, NumberFormat.INT8), Component.DISK)) == {"checkpoint", "packed weights"}


@pytest.fixture
def small_sources(monkeypatch):
    """Let the embedded model, which is small, be one for the cache."""
    monkeypatch.setattr("openautoglm.checkpoint.packed.MIN_SOURCE_BYTES", 1)
    monkeypatch.setattr("openautoglm.planner.parts.MIN_SOURCE_BYTES", 1)
    monkeypatch.setattr(
        "openautoglm.engine.weights_on_disk.open_cache",
        lambda setting, **_: PackedCache(directory=Path(setting), min_source_bytes=1),
    )


@pytest.mark.parametrize("quant", [NumberFormat.INT8, NumberFormat.INT4])
def test_a_load_is_what_the_plan_says_part_by_part(quant, tmp_path, small_sources):
    """First from the checkpoint, then from the packed weights."""
    goal = Goal(quant=quant, context_tokens=256, concurrency=2, memory_bytes=GIB)
    options = EngineOptions(model="demo", goal=goal, cache=str(tmp_path))
    for start in range(2):
        opened = open_engine(prepare(options))
        receipt = json.loads(opened.description.receipt_json)
        opened.engine.close()
        compared = {(line["component"], line["part"]): line for line in receipt["components"]}
        for part in opened.plan.breakdown.parts:
            if part.component in (Component.WEIGHTS, Component.WORKSPACE):
                assert compared[part.component.value, part.name]["difference_bytes"] == 0, part
        assert compared["KV cache", None]["difference_bytes"] == 0
        # To the page: vectors are allocated one by one, the arena in whole pages.
        assert abs(compared["weights", None]["difference_bytes"]) < 4096
        assert compared["disk", "checkpoint"]["difference_bytes"] == 0
        assert compared["disk", "packed weights"]["difference_bytes"] == 0
        assert compared["page cache", "checkpoint"]["measured_bytes"] <= 18 * MIB
        assert compared["page cache", "packed weights"]["difference_bytes"] >= 0
        kept = compared["page cache", "packed weights"]["measured_bytes"]
        assert kept < MIB if start == 0 else kept > 0.9 * compared["disk", "packed weights"]["measured_bytes"]
        assert receipt["plan"]["breakdown"]["peak_bytes"] == receipt["peak"]["planned_bytes"]


def test_parts_of_layers_on_disk_are_no_memory(tmp_path):
    """The parts are those of the layers in memory, and the file is as large as without."""
    goal = Goal(quant=NumberFormat.INT8, context_tokens=256, concurrency=2, offload_directory=str(tmp_path))
    whole = prepare(EngineOptions(model="demo", goal=goal)).plan
    opened = open_engine(prepare(EngineOptions(model="demo", goal=replace(goal, placement=Placement(disk=(1, 3))))))
    receipt = json.loads(opened.description.receipt_json)
    opened.engine.close()
    breakdown = opened.plan.breakdown
    assert sums_of(breakdown)[Component.WEIGHTS] == breakdown.weight_bytes
    assert whole.breakdown.weight_bytes - breakdown.weight_bytes == opened.plan.offload.disk_bytes
    compared = {(line["component"], line["part"]): line for line in receipt["components"]}
    for part in breakdown.parts_of(Component.WEIGHTS):
        assert compared["weights", part.name]["difference_bytes"] == 0, part
    assert compared["disk", "packed weights"]["difference_bytes"] == 0
    assert compared["page cache", "packed weights"]["difference_bytes"] >= 0
    assert abs(compared["weights: ring", None]["difference_bytes"]) < 4096
    assert receipt["direct_reads"] is True


def test_the_page_cache_is_counted_by_pages(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(os.urandom(10 * 4096 + 5))
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        assert cached_bytes(file) == 10 * 4096 + 5
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert cached_bytes(file) == 0
        os.pread(handle.fileno(), 1, 0)
        assert 4096 <= cached_bytes(file) <= 10 * 4096 + 5
    (tmp_path / "empty").touch()
    assert cached_bytes(tmp_path / "empty") == 0


def test_tiers_are_part_of_the_peak():
    plan = make_plan(GLM_9B, machine(), Goal(quant=NumberFormat.INT4), model="m")
    tiered = replace(plan.breakdown, tier_bytes=7 * MIB)
    assert tiered.peak_bytes == plan.breakdown.peak_bytes + 7 * MIB
    assert plan.breakdown.tier_bytes == 0
