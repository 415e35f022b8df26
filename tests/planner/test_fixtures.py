"""Every published shape is planned within a second, from its config alone, through the command line's own code."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from openautoglm.cli.plan import plan_command
from openautoglm.errors import DoesNotFitError

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())
MEMORY = ["--memory", "3000GiB"]


def config_file(directory, name):
    file = directory / "config.json"
    file.write_text(json.dumps(FIXTURES[name]["config"]))
    return str(file)


def planned(directory, name, *options):
    arguments = [config_file(directory, name), *options, "--json"]
    result = CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_published_shape_is_planned(tmp_path, name):
    fixture = FIXTURES[name]
    started = time.perf_counter()
    plan = planned(tmp_path, name, *MEMORY, "--context", "2048", "--concurrency", "4")
    seconds = time.perf_counter() - started
    assert seconds < 1.0
    assert plan["num_parameters"] == fixture["total"]
    weights = plan["breakdown"]["weight_bytes"]
    assert 0.99 * fixture["total"] < weights < 1.35 * (fixture["total"] + fixture["visual"])
    if isinstance(fixture["kv_bytes_per_token_bf16"], int):  # the hybrid has no figure
        published = 4 * 2048 * fixture["kv_bytes_per_token_bf16"]
        assert published <= plan["breakdown"]["kv_bytes"] < 1.25 * published  # indexer keys come on top
    assert plan["breakdown"]["total_bytes"] <= plan["budget_bytes"]


@pytest.mark.parametrize("name", FIXTURES)
def test_every_published_shape_is_refused_helpfully_in_little_memory(tmp_path, name):
    arguments = [config_file(tmp_path, name), "--memory", "400MiB"]
    result = CliRunner().invoke(plan_command, arguments)
    assert isinstance(result.exception, DoesNotFitError)
    assert len(result.exception.suggestions) >= 3


@pytest.mark.parametrize(
    ("name", "runnable"),
    [
        ("glm-edge-1.5b-chat", True),
        ("GLM-4-9B-0414", True),
        ("Qwen3-0.6B", True),
        ("GLM-4.5-Air", False),
        ("GLM-4.7-Flash", False),
        ("GLM-4.1V-9B/AutoGLM-Phone-9B", False),
        ("GLM-5.3-Flash", False),
        ("Qwen3-30B-A3B", False),
    ],
)
def test_what_cannot_run_yet_names_its_features(tmp_path, name, runnable):
    plan = planned(tmp_path, name, *MEMORY)
    assert plan["runnable"] is runnable
    assert bool(plan["unsupported"]) is not runnable
    table = CliRunner().invoke(plan_command, [config_file(tmp_path, name), *MEMORY], catch_exceptions=False).output
    assert ("not runnable yet" in table) is not runnable


def test_a_refusal_as_json(tmp_path):
    arguments = [config_file(tmp_path, "glm-4-9b-chat-hf"), "--memory", "1GiB", "--json"]
    result = CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    assert result.exit_code == 3
    answer = json.loads(result.output)
    assert answer["fits"] is False
    assert len(answer["suggestions"]) >= 3


def test_the_embedded_model():
    result = CliRunner().invoke(plan_command, ["demo:int4", "--json"], catch_exceptions=False)
    plan = json.loads(result.output)
    assert plan["runnable"] is True
    assert plan["formats"]["layers"] == "int4-g64"
    assert plan["model"] == "demo"
