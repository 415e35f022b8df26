"""The hard budget: a server in a cgroup of exactly its budget, asked for four times what it can do.

Two runs: in a group of exactly the budget nothing may be killed, and in a group with room to spare the demand
(everything but page cache that nobody has mapped), sampled every 10 ms, must stay within the budget by itself. The pool
is most of the budget and is filled, so that there is no slack to hide in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.units import format_bytes
from overload.clients import Outcome, overload
from overload.server import wait_until_idle
from tests.cgroup.served import Served, planned_bytes, served

pytestmark = pytest.mark.cgroup

CONTEXT, CONCURRENCY, RUNNING = 512, 14, 16
SETTINGS = ["--context", str(CONTEXT), "--concurrency", str(CONCURRENCY), "--max-running", str(RUNNING),
            "--max-queued", "24", "--kv", "bf16"]  # fmt: skip
OVERLOAD, MOST_NEW_TOKENS = 4, 24
SHORT_SECONDS, LONG_SECONDS = 8.0, 120.0
TIGHT_SHARE = 0.85


def run_overloaded(model: str, quant: str, seconds: float, *, limit_bytes: int, budget_bytes: int) -> Served:
    """Serve under overload, check that everything was answered and all blocks came back; return what was measured."""
    arguments = [*SETTINGS, "--quant", quant, "--memory", str(budget_bytes)]
    with served(model, *arguments, limit_bytes=limit_bytes) as running:
        outcome = overload(
            running.url,
            num_clients=OVERLOAD * RUNNING,
            context_tokens=CONTEXT,
            most_new_tokens=MOST_NEW_TOKENS,
            seconds=seconds,
        )
        assert outcome.faults == []
        assert outcome.statuses[200] >= 20
        metrics = wait_until_idle(running.url)
        assert metrics["openautoglm_kv_blocks:used"] == 0
        assert running.process.poll() is None
        assert running.group.num_kills() == 0
    report(running, outcome, budget_bytes)
    assert running.num_samples > seconds / 0.01 / 4
    assert TIGHT_SHARE * budget_bytes <= running.demand_bytes <= budget_bytes
    assert running.pss_bytes <= budget_bytes
    return running


def report(running: Served, outcome: Outcome, budget_bytes: int) -> None:
    """Print what happened, for who runs this by hand."""
    print(
        f"budget {format_bytes(budget_bytes)}: demand {format_bytes(running.demand_bytes)} "
        f"({running.demand_bytes / budget_bytes:.1%}), PSS {format_bytes(running.pss_bytes)}, "
        f"{running.num_samples} samples, at most {running.longest_pause_seconds * 1e3:.0f} ms apart"
    )
    print(f"statuses {dict(outcome.statuses)}, refusals {dict(outcome.refusals)}, faults {outcome.faults[:3]}")


def prove(model: str, seconds: float, *, room: int, quant: str = "int8") -> None:
    """Overload a server whose budget is exactly its plan, in a group of `room` times as much."""
    budget = planned_bytes(model, quant=quant, kv="bf16", context_tokens=CONTEXT, concurrency=CONCURRENCY)
    run_overloaded(model, quant, seconds, limit_bytes=room * budget, budget_bytes=budget)


def test_overload_within_a_group_of_the_budget_kills_nothing(wide_model: Path):
    prove(str(wide_model), SHORT_SECONDS, room=1)


def test_the_demand_itself_stays_within_the_budget(wide_model: Path):
    prove(str(wide_model), SHORT_SECONDS, room=2)


@pytest.mark.long
@pytest.mark.parametrize("quant", ["int8", "int4", "bf16"])
@pytest.mark.parametrize("room", [1, 2])
def test_the_budget_holds_for_minutes(wide_model: Path, quant: str, room: int):
    prove(str(wide_model), LONG_SECONDS, room=room, quant=quant)
