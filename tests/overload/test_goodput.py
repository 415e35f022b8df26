"""Four times the load that a server can do: it goes on to do what it can, by a simulated clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overload.simulator import Server, capacity, goodput
from overload.trace import Arrival, TraceShape, make_trace

LEAST_SHARE = 0.95
SECONDS = 15
# Steps that a second row makes hardly longer, and steps that take the time of their rows.
SHARED = Server(
    num_blocks=600,
    max_step_tokens=512,
    max_running=16,
    base_seconds=0.02,
    prompt_token_seconds=0.001,
    row_seconds=0.001,
)
EACH = replace(SHARED, base_seconds=0.01, prompt_token_seconds=0.0015, row_seconds=0.003)


def arrivals(rate: float, deadline_seconds: float, *, told: bool, seed: int) -> tuple[Arrival, ...]:
    """Requests that all must end within the same time; `told`: the server knows how long the answers are."""
    shape = TraceShape(
        num_requests=round(rate * SECONDS), requests_per_second=rate, prompt_tokens=(16, 256), answer_tokens=(8, 96),
        max_tokens=96, slack=(1, 1), busy_seconds_per_token=1.0, prompt_seconds_per_token=1.0, seed=seed,
    )  # fmt: skip
    made = (replace(one, deadline_seconds=deadline_seconds) for one in make_trace(shape))
    return tuple(replace(one, max_tokens=one.answer_tokens) if told else one for one in made)


@pytest.mark.parametrize("deadline_seconds", [6.0, 20.0])
@pytest.mark.parametrize("told", [True, False], ids=["known lengths", "guessed lengths"])
@pytest.mark.parametrize("server", [SHARED, EACH], ids=["shared steps", "time by rows"])
def test_four_times_the_load_costs_no_goodput(server: Server, told: bool, deadline_seconds: float) -> None:
    rate = capacity(server, arrivals(8.0, 1e9, told=told, seed=1))
    good: dict[float, float] = {}
    for times in (0.9, 1.2, 4.0):
        traces = [arrivals(times * rate, deadline_seconds, told=told, seed=seed) for seed in (2, 3)]
        good[times] = sum(goodput(server, trace) for trace in traces)
    assert good[4.0] >= LEAST_SHARE * max(good.values()), good
