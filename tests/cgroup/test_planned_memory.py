"""The planned total is enough: a run inside a memory cgroup of exactly that size ends well, with no kill."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cgroup.memory_group import MemoryGroup

pytestmark = pytest.mark.cgroup

COMMAND = [sys.executable, "-m", "openautoglm"]
SETTINGS = ["--context", "1024", "--concurrency", "2"]
MIB = 1 << 20


def planned_total_bytes(quant: str) -> int:
    with MemoryGroup(2048 * MIB) as group:
        done = group.run([*COMMAND, "plan", "demo", "--quant", quant, *SETTINGS, "--json"])
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["breakdown"]["total_bytes"])


@pytest.mark.parametrize("quant", ["bf16", "int8", "int4"])
def test_a_run_fits_its_plan(quant: str):
    total_bytes = planned_total_bytes(quant)
    with MemoryGroup(total_bytes) as group:
        done = group.run([*COMMAND, "run", "demo", "def main():", "--raw", "--quant", quant, *SETTINGS,
                          "--max-tokens", "64", "--temperature", "0"])  # fmt: skip
        assert group.num_kills() == 0
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_the_plan_sees_the_limit():
    limit_bytes = 400 * MIB
    with MemoryGroup(limit_bytes) as group:
        done = group.run([*COMMAND, "plan", "demo", "--json"])
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["breakdown"]["total_bytes"] <= plan["budget_bytes"] <= limit_bytes


def test_a_plan_that_does_not_fit_is_refused_before_loading():
    with MemoryGroup(200 * MIB) as group:
        done = group.run([*COMMAND, "run", "demo", "hello", "--context", "2048", "--concurrency", "512"])
        assert group.num_kills() == 0
    assert done.returncode == 3, done.stderr
    assert "--context" in done.stderr
