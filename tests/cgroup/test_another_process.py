"""Another process takes 30 % of the memory beside a serving server: rungs, no crash, the same answers, and recovery."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from overload.server import read_metrics, wait_until_idle
from tests.cgroup.memory_group import MemoryGroup
from tests.cgroup.served import served
from tests.cgroup.under_load import SETTINGS, answers, fill, loaded, memory, planned_budget, wait_until

pytestmark = pytest.mark.cgroup

HOG = Path(__file__).with_name("hog.py")
SHARE = 0.30
# A step of 128 tokens must end while the headroom lasts, also on a busy machine.
TAKING_SECONDS = 8.0
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
    budget = planned_budget(model)
    with served(model, *SETTINGS, "--memory", str(budget), limit_bytes=budget) as running:
        before = answers(running.url)
        planned = memory(running.url)["pool_blocks"]
        fill(running.url)
        assert memory(running.url)["tree_bytes"] > 0.8 * budget
        with loaded(running.url) as outcomes, hog(running.group, int(SHARE * budget)):
            # Libraries that others have mapped are charged to those: the tree may take a little more than the rest.
            assert memory(running.url)["tree_bytes"] < (1 - SHARE + 0.05) * budget
            assert answers(running.url) == before
        assert outcomes[0].faults == []
        assert outcomes[0].statuses[200] >= 10
        wait_until_idle(running.url)
        wait_until(lambda: memory(running.url)["rung"] == "none", RECOVERY_SECONDS, "the ladder stays")
        wait_until(lambda: memory(running.url)["pool_blocks"] == planned, RECOVERY_SECONDS, "the pool stays small")
        assert answers(running.url) == before
        assert read_metrics(running.url)["openautoglm_ladder_rung_transitions_total:drop_prefix"] >= 1
        explained = httpx.get(f"{running.url}/v1/requests/{outcomes[0].touched[-1]}/explain", timeout=30).json()
        assert "drop_prefix" in explained["requests"][0]["rungs"]
        assert running.group.num_kills() == 0
        assert running.process.poll() is None
    for what in ("enters", "leaves"):
        assert any(f"memory ladder: {what} drop_prefix" in line for line in running.log)
