"""Tables and dictionaries of plans and receipts."""

import json
import re

from openautoglm.planner.explain import plan_as_dict, plan_table
from openautoglm.planner.receipt import MeasuredMemory, receipt_table
from openautoglm.planner.search import make_plan
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.units import GIB, MIB, format_bytes
from tests.planner.models import GLM_9B, QWEN3_06B, machine


def test_the_table_shows_every_component_once_and_aligned():
    plan = make_plan(GLM_9B, machine(20 * GIB), Goal(quant=NumberFormat.INT4), model="org/glm", unsupported=("x",))
    lines = plan_table(plan).splitlines()
    breakdown = plan.breakdown
    for name, size in (
        ("weights: layers", breakdown.layer_weight_bytes),
        ("weights: head", breakdown.head_weight_bytes),
        ("weights: embeddings", breakdown.embedding_weight_bytes),
        ("weights: norms and biases", breakdown.norm_bytes),
        ("KV cache", breakdown.kv_bytes),
        ("workspace", breakdown.workspace_bytes),
        ("runtime", breakdown.runtime_bytes),
        ("predicted peak", breakdown.peak_bytes),
        ("headroom", breakdown.headroom_bytes),
        ("total", breakdown.total_bytes),
        ("budget", plan.budget_bytes),
    ):
        found = [line for line in lines if re.match(rf"  {re.escape(name)}\s\s", line)]
        assert len(found) == 1, name
        assert found[0].endswith(format_bytes(size))
    table = [line for line in lines[2 : lines.index("", 2)] if line.endswith("iB")]
    assert len(table) == 12
    assert len({len(line) for line in table}) == 1
    assert "org/glm" in lines[0]
    assert "9.40 B parameters" in lines[0]
    assert any("not runnable yet: x" in line for line in lines)
    assert any(f"{plan.max_context_tokens:,} tokens" in line for line in lines)
    assert "why" in lines


def test_tied_embeddings_stand_in_one_line():
    table = plan_table(make_plan(QWEN3_06B, machine(), Goal(), model="q"))
    assert "head and embeddings" in table
    assert "weights: embeddings" not in table


def test_the_dictionary_is_json_and_adds_up():
    plan = make_plan(GLM_9B, machine(20 * GIB), Goal(), model="org/glm")
    answer = json.loads(json.dumps(plan_as_dict(plan)))
    parts = answer["breakdown"]
    weights = ("layer_weight_bytes", "head_weight_bytes", "embedding_weight_bytes", "norm_bytes")
    assert sum(parts[name] for name in weights) == parts["weight_bytes"]
    components = ("weight_bytes", "kv_bytes", "workspace_bytes", "runtime_bytes")
    assert sum(parts[name] for name in components) == parts["peak_bytes"]
    assert parts["peak_bytes"] + parts["headroom_bytes"] == parts["total_bytes"] <= answer["budget_bytes"]
    assert answer["formats"] == {
        "layers": "int8",
        "head": "int8",
        "embedding": "int8",
        "kv": "bf16",
        "activations": "group",
        "attention": "fastest",
    }
    assert answer["fits"] is True
    assert answer["runnable"] is True
    assert answer["num_parameters"] == 9_399_951_360  # the model's published count


def test_a_receipt_shows_what_no_component_explains():
    plan = make_plan(QWEN3_06B, machine(), Goal(), model="q")
    measured = MeasuredMemory(
        weight_bytes=600 * MIB,
        kv_bytes=100 * MIB,
        workspace_bytes=30 * MIB,
        runtime_bytes=90 * MIB,
        untouched_bytes=0,
        resident_bytes=900 * MIB,
        peak_bytes=950 * MIB,
    )
    assert measured.unaccounted_bytes == 80 * MIB
    lines = receipt_table(plan, measured).splitlines()
    for word in ("weights", "KV cache", "workspace", "runtime", "unaccounted", "resident now", "peak so far"):
        assert any(line.strip().startswith(word) for line in lines), word
    assert "80.0 MiB" in next(line for line in lines if "unaccounted" in line)
    assert format_bytes(plan.breakdown.weight_bytes) in next(line for line in lines if line.startswith("  weights"))


def test_pages_not_touched_yet_are_said_so():
    measured = MeasuredMemory(
        weight_bytes=600 * MIB,
        kv_bytes=1000 * MIB,
        workspace_bytes=0,
        runtime_bytes=0,
        untouched_bytes=900 * MIB,
        resident_bytes=710 * MIB,
        peak_bytes=710 * MIB,
    )
    plan = make_plan(QWEN3_06B, machine(), Goal(), model="q")
    lines = receipt_table(plan, measured).splitlines()
    assert "-900 MiB" in next(line for line in lines if "not touched yet" in line)
    assert "10.0 MiB" in next(line for line in lines if "unaccounted" in line)
