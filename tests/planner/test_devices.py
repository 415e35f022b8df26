"""Devices described by their memory: what fits is what the formulas say, and no wish is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.cli.plan import plan_command
from openautoglm.errors import ConfigError
from openautoglm.families.debug import debug_config
from openautoglm.families.published import published_configs
from openautoglm.families.registry import describe
from openautoglm.memory.kv import kv_bytes_per_token
from openautoglm.memory.weights import weight_bytes
from openautoglm.planner import quality_costs
from openautoglm.planner.devices import DEVICE_RESERVE_BYTES, best_option, device_options
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.units import GIB, MIB
from tests.planner.models import ARCHITECTURES, GLM_9B, QWEN3_06B

ROOT = Path(__file__).parents[2]
FIXTURES = json.loads((ROOT / "tests" / "data" / "model_fixtures.json").read_text())


def by_formats(spec, size, goal=None):
    return {
        (str(option.formats.layers), str(option.formats.kv)): option
        for option in device_options(spec, size, goal or Goal())
    }


@pytest.mark.parametrize("size", [8 * GIB, 16 * GIB, 24 * GIB, 40 * GIB, 80 * GIB])
def test_the_context_is_what_is_left_by_hand(size):
    """Device less reserve, weights and 2 % of the peak, over the bytes of a token; a step's memory is below 192 MiB."""
    for (_, kv), option in by_formats(GLM_9B, size).items():
        weights = weight_bytes(GLM_9B, option.formats).total
        token = kv_bytes_per_token(GLM_9B, NumberFormat(kv))
        room = size / 1.02 - DEVICE_RESERVE_BYTES - weights
        if room < 0:
            assert not option.fits
            continue
        most, least = room / token, (room - 192 * MIB) / token
        assert option.max_context_tokens <= most
        assert option.max_context_tokens >= min(GLM_9B.max_positions, least // 16 * 16) or least < 256


@settings(max_examples=100, deadline=None)
@given(spec=st.sampled_from(ARCHITECTURES), size=st.integers(GIB, 90 * GIB), more=st.integers(0, 20 * GIB))
def test_a_larger_device_holds_no_less(spec, size, more):
    small, large = by_formats(spec, size), by_formats(spec, size + more)
    for formats, option in small.items():
        assert large[formats].max_context_tokens >= option.max_context_tokens
        assert large[formats].max_concurrency >= option.max_concurrency
        assert option.fits is (option.least_bytes <= size)


def test_smaller_formats_hold_more_and_cost_more():
    options = device_options(GLM_9B, 24 * GIB, Goal())
    costs = [quality_costs.divergence_nats(option.formats) for option in options]
    assert costs == sorted(costs)
    found = by_formats(GLM_9B, 24 * GIB)
    assert found["int4-g64", "bf16"].max_concurrency > found["int8", "bf16"].max_concurrency
    assert found["int8", "int8"].max_concurrency > found["int8", "bf16"].max_concurrency
    best = best_option(GLM_9B, options)
    assert best is not None
    assert str(best.formats.layers) == "bf16"
    tight = best_option(GLM_9B, device_options(GLM_9B, 8 * GIB, Goal()))
    assert tight is not None
    assert str(tight.formats.layers) == "int4-g64"
    assert best_option(GLM_9B, device_options(GLM_9B, 2 * GIB, Goal())) is None


def test_wishes_are_kept():
    goal = Goal(quant=NumberFormat.INT4, group=32, kv=NumberFormat.FP8, concurrency=4, context_tokens=1000)
    (option,) = device_options(QWEN3_06B, 8 * GIB, goal)
    assert (str(option.formats.layers), str(option.formats.kv)) == ("int4-g32", "fp8")
    assert (option.concurrency, option.context_tokens) == (4, 1000)


def test_latents_have_one_cache():
    spec = describe(debug_config("glm_moe_dsa"))
    assert {str(option.formats.kv) for option in device_options(spec, GIB, Goal())} == {"bf16"}


def test_the_package_knows_the_published_shapes():
    assert dict(published_configs()) == {name: fixture["config"] for name, fixture in FIXTURES.items()}


def test_costs_are_those_that_were_measured():
    """Against the tables of the log: what a plan quotes is what was printed there."""
    log = (ROOT / "docs" / "log.md").read_text()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in log.splitlines() if "|" in line]
    costs = {row[0]: row[1] for row in rows if len(row) == 3}
    assert float(costs["int8"]) == quality_costs.WEIGHTS_KL_NATS["int8"]
    assert float(costs["bf16"]) == quality_costs.WEIGHTS_KL_NATS["bf16"]
    assert float(costs["nf4 g64"]) == quality_costs.WEIGHTS_KL_NATS["nf4-g64"]
    groups = [quality_costs.WEIGHTS_KL_NATS[f"int4-g{group}"] for group in (32, 64, 128)]
    assert [float(cost) for cost in costs["int4 g32 / g64 / g128"].split(" / ")] == groups
    caches = {row[1]: row[2] for row in rows if len(row) == 5 and row[0] == "int8"}
    assert float(caches["int8"]) == quality_costs.KV_KL_NATS[NumberFormat.INT8]
    assert float(caches["fp8"]) == quality_costs.KV_KL_NATS[NumberFormat.FP8]


def test_what_nobody_measured_is_not_quoted():
    formats = ModelFormats.for_quantisation(NumberFormat.NF4, group=32)
    assert quality_costs.divergence_nats(formats) is None
    assert quality_costs.describe_cost(formats) == "not measured"


def plan(*arguments):
    return CliRunner().invoke(plan_command, list(arguments))


def test_the_command_for_one_model():
    result = plan("demo", "--device", "8GiB", "--device", "100MiB")
    assert result.exit_code == 0, result.output
    assert "does not fit" in result.output
    assert "nats per token" in result.output
    answer = json.loads(plan("demo:int4", "--device", "8GiB", "--json").output)
    (device,) = answer["devices"]
    assert {option["weights"] for option in device["options"]} == {"int4-g64"}
    assert all(option["divergence_measured_on"] == "the embedded model" for option in device["options"])


def test_the_table_of_models():
    result = plan("--table")
    lines = result.output.splitlines()
    assert result.exit_code == 0
    for size in ("8.00 GiB", "16.0 GiB", "24.0 GiB", "40.0 GiB", "80.0 GiB"):
        assert size in lines[0]
    for name in FIXTURES:
        assert any(line.startswith(name) for line in lines)
    answer = json.loads(plan("--table", "--device", "16GiB", "--json").output)
    cells = {model["model"]: model["best"][0] for model in answer["models"]}
    assert cells["GLM-4-9B-0414"]["weights"] == "int8"
    assert cells["Llama-3.1-405B"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--device", "8GiB", "--memory", "1GiB"], "--memory"),
        (["demo", "--device", "8GiB", "--objective", "quality"], "--objective"),
        (["demo", "--device", "8GiB", "--threads", "2"], "--threads"),
        (["demo", "--device", "0GiB"], "above zero"),
        (["demo", "--device", "large"], "not a size"),
        (["demo", "--table"], "leave MODEL"),
        (["--table", "--server"], "--server"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, words):
    result = plan(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)


@pytest.mark.parametrize("arguments", [["--device", "8GiB"], ["--train", "full"]])
def test_settings_of_this_machine_are_no_wish_for_another(arguments):
    settings_of_files = {"memory": "1GiB", "threads": 2, "objective": "quality"}
    done = CliRunner().invoke(plan_command, ["demo", *arguments], default_map=settings_of_files)
    assert done.exit_code == 0, done.output


def test_a_plan_needs_a_model():
    result = plan()
    assert result.exit_code == 2
    assert "MODEL" in result.output
