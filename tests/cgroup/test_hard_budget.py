"""The hard budget: a server in a cgroup of exactly its budget, asked for four times what it can do.

Two runs of each kind: in a group of exactly the budget nothing may be killed, and in a group with room to spare the
demand (everything but page cache that nobody has mapped), sampled every 10 ms, must stay within the budget by itself.
"""

from __future__ import annotations

import pytest

from openautoglm.units import format_bytes
from tests.cgroup.overload import Outcome, overload
from tests.cgroup.served import Served, served, wait_until_idle

pytestmark = pytest.mark.cgroup

CONTEXT, CONCURRENCY, RUNNING = 1024, 4, 8
SETTINGS = ["--context", str(CONTEXT), "--concurrency", str(CONCURRENCY), "--max-running", str(RUNNING),
            "--max-queued", "16"]  # fmt: skip
OVERLOAD = 4


def planned_bytes(model: str, quant: str) -> int:
    """What `serve` would plan with all the memory in the world: peak and headroom."""
    from openautoglm.engine.assemble import EngineOptions, prepare
    from openautoglm.spec.formats import NumberFormat
    from openautoglm.spec.goal import Goal

    goal = Goal(context_tokens=CONTEXT, concurrency=CONCURRENCY, quant=NumberFormat(quant))
    return prepare(EngineOptions(model=model, goal=goal, server=True)).plan.breakdown.total_bytes


def run_overloaded(model: str, quant: str, seconds: float, *, limit_bytes: int, budget_bytes: int) -> Served:
    """Serve under overload, check that everything was answered and all blocks came back; return what was measured."""
    arguments = [*SETTINGS, "--quant", quant, "--memory", str(budget_bytes)]
    with served(model, *arguments, limit_bytes=limit_bytes) as running:
        outcome = overload(running.url, num_clients=OVERLOAD * RUNNING, context_tokens=CONTEXT, seconds=seconds)
        report(running, outcome, budget_bytes)
        assert outcome.faults == []
        assert outcome.statuses[200] >= 20
        metrics = wait_until_idle(running.url)
        assert metrics["openautoglm_kv_blocks:used"] == 0
        assert running.process.poll() is None
        assert running.group.num_kills() == 0
    assert running.num_samples > seconds / 0.01 / 4
    return running


def report(running: Served, outcome: Outcome, budget_bytes: int) -> None:
    """Print what happened, for who runs this by hand."""
    print(f"budget {format_bytes(budget_bytes)}, charged at most {format_bytes(running.group.peak_bytes())}")
    print(f"statuses {dict(outcome.statuses)}, refusals {dict(outcome.refusals)}, faults {outcome.faults[:3]}")


@pytest.mark.parametrize("quant", ["int8"])
def test_overload_within_a_group_of_the_budget_kills_nothing(quant: str):
    budget = planned_bytes("demo", quant)
    running = run_overloaded("demo", quant, 20, limit_bytes=budget, budget_bytes=budget)
    assert running.pss_bytes <= budget


def test_the_demand_itself_stays_within_the_budget():
    budget = planned_bytes("demo", "int8")
    running = run_overloaded("demo", "int8", 20, limit_bytes=2 * budget, budget_bytes=budget)
    print(f"demand {format_bytes(running.demand_bytes)}, PSS {format_bytes(running.pss_bytes)}")
    assert 0.4 * budget < running.demand_bytes <= budget
    assert running.pss_bytes <= budget
