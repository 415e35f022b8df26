"""Another process takes 30 % of the memory beside a serving server: rungs, no crash, the same answers, and recovery."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from overload.server import read_metrics, wait_until_idle
from tests.cgroup.memory_group import MemoryGroup
from tests.cgroup.served import Served, planned_bytes, served
from tests.cgroup.under_load import (
    CONCURRENCY,
    CONTEXT,
    KV,
    PROMPTS,
    QUANT,
    SETTINGS,
    answers,
    ask,
    loaded,
    memory,
    wait_until,
)

pytestmark = pytest.mark.cgroup

HOG = Path(__file__).with_name("hog.py")
SHARE = 0.30
TAKING_SECONDS = 3.0
RECOVERY_SECONDS = 30.0


@contextlib.contextmanager
def hog(group: MemoryGroup, num_bytes: int) -> Iterator[None]:
    """Hold so many bytes in the group while the block runs, once they are all taken."""
    command = [sys.executable, str(HOG), str(num_bytes), str(TAKING_SECONDS)]
    with group.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.communicate()
        assert process.returncode == 0


def test_a_hog_costs_rungs_and_nothing_else(wide_model: Path):
    model = str(wide_model)
    budget = planned_bytes(model, context=CONTEXT, concurrency=CONCURRENCY, quant=QUANT, kv=KV)
    with served(model, *SETTINGS, "--memory", str(budget), limit_bytes=budget) as running:
        before = answers(running.url)
        planned = memory(running.url)["pool_blocks"]
        with loaded(running.url) as outcomes:
            wait_until(lambda: running.group.used_bytes() > 0.8 * budget, 60, "the pool does not fill")
            with hog(running.group, int(SHARE * budget)):
                check_rungs(running)
                assert memory(running.url)["pool_blocks"] < planned
                assert answers(running.url) == before
        assert outcomes[0].faults == []
        assert outcomes[0].statuses[200] >= 10
        wait_until_idle(running.url)
        wait_until(lambda: memory(running.url)["rung"] == "none", RECOVERY_SECONDS, "the ladder stays")
        wait_until(lambda: memory(running.url)["pool_blocks"] == planned, RECOVERY_SECONDS, "the pool stays small")
        assert answers(running.url) == before
        assert running.group.num_kills() == 0
        assert running.process.poll() is None
    assert any("memory ladder: leaves drop_prefix" in line for line in running.log)


def check_rungs(running: Served) -> None:
    """Check that metrics, the log, an answer and its explanation tell of the ladder."""
    print("".join(running.log[-30:]), read_metrics(running.url))
    assert read_metrics(running.url)["openautoglm_ladder_rung_transitions_total:drop_prefix"] >= 1
    assert any("memory ladder: enters drop_prefix" in line for line in running.log)
    deadline = time.monotonic() + RECOVERY_SECONDS
    while "requests" not in (answer := ask(running.url, PROMPTS[3], 4)).get("openautoglm", {}):
        assert time.monotonic() < deadline, "no answer tells of the ladder"
    told = answer["openautoglm"]["requests"]
    explained = httpx.get(f"{running.url}/v1/requests/{answer['id']}/explain", timeout=30).json()["requests"]
    assert explained[0]["rungs"] == told[0]["rungs"] != []
