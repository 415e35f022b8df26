"""Simulations: the clock against sums by hand, tables of step times against what made them, and the report."""

from __future__ import annotations

import random

import numpy as np
import pytest

from openautoglm.bench.simulation_report import replay_as_dict, replay_table
from openautoglm.bench.simulator import SimulatedServer, batch_load, simulate
from openautoglm.bench.step_table import StepTable, fit_step_table
from openautoglm.engine.batch import build_batch
from openautoglm.engine.costs import step_load
from openautoglm.engine.schedule import Schedule, ScheduledRow
from openautoglm.errors import ConfigError
from openautoglm.spec.scheduling import PLAIN_SCHEDULING, SchedulingOptions
from openautoglm.spec.step_cost import StepLoad
from openautoglm.spec.trace import TraceRequest
from tests.engine.test_deadlines import make

TABLE = StepTable(
    tokens=(1, 16, 512), token_seconds=(0.02, 0.03, 2.0), row_seconds=0.001, key_seconds=1e-6, pair_seconds=1e-7
)
SERVER = SimulatedServer(
    model="m", context_tokens=1024, num_blocks=512, max_step_tokens=512, max_step_rows=8, steps=TABLE
)


def load(prompt: int, rows: int, keys: int = 0, pairs: int = 0) -> StepLoad:
    return StepLoad(num_prompt_tokens=prompt, num_rows=rows, num_keys=keys, num_pairs=pairs)


def request(arrival: float, prompt: int, output: int, priority: int = 0) -> TraceRequest:
    return TraceRequest(arrival_seconds=arrival, prompt_tokens=prompt, output_tokens=output, priority=priority)


def test_a_table_is_linear_between_its_sizes_and_beyond_them() -> None:
    assert TABLE.seconds(load(0, 1)) == 0.02
    assert TABLE.seconds(load(15, 1)) == 0.03
    assert TABLE.seconds(load(0, 16)) == pytest.approx(0.03 + 15 * 0.001)
    assert TABLE.seconds(load(263, 1)) == pytest.approx((0.03 + 2.0) / 2)
    slope = (2.0 - 0.03) / (512 - 16)
    assert TABLE.seconds(load(611, 1)) == pytest.approx(2.0 + 100 * slope)
    assert TABLE.seconds(load(0, 1, 1000, 1000)) == pytest.approx(0.02 + 1e-3 + 1e-4)


def test_a_fit_finds_the_table_that_made_the_steps() -> None:
    draw = random.Random(1)
    loads = [
        load(
            draw.choice([0, 3, 15, 60, 300, 500]), draw.randint(1, 16), draw.randint(0, 10_000), draw.randint(0, 50_000)
        )
        for _ in range(200)
    ]
    found = fit_step_table(TABLE.tokens, [(one, TABLE.seconds(one) * draw.uniform(0.98, 1.02)) for one in loads])
    for one in loads:
        assert found.seconds(one) == pytest.approx(TABLE.seconds(one), rel=0.02)
    with pytest.raises(ConfigError, match="about 512"):
        fit_step_table(TABLE.tokens, [(load(0, 1), 0.02), (load(5, 1), 0.03)])


@pytest.mark.parametrize(
    ("tokens", "seconds"), [((1,), (0.1,)), ((1, 1), (0.1, 0.1)), ((0, 2), (0.1, 0.1)), ((1, 2), (0.1, -0.1))]
)
def test_tables_that_cannot_be_interpolated_are_refused(tokens: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="table"):
        StepTable(tokens=tokens, token_seconds=seconds, row_seconds=0.0, key_seconds=0.0, pair_seconds=0.0)


def test_a_batch_has_the_load_of_its_rows() -> None:
    rows = []
    for index, (begin, end) in enumerate([(39, 40), (0, 17), (5, 40)]):
        sequence = make(None, arrival=index, prompt=40).sequences[0]
        sequence.attach([3 * index, 3 * index + 1, 3 * index + 2])
        rows.append(ScheduledRow(sequence, begin, end))
    assert batch_load(build_batch(Schedule(rows, 53), num_groups=1)) == step_load(rows)


def test_times_are_the_sums_of_steps() -> None:
    run = simulate(SERVER, [request(1.0, 16, 3), request(1.01, 16, 2)], scheduling=PLAIN_SCHEDULING)
    first, second = run.fates
    one = TABLE.seconds(load(15, 1, 16, 15 * 16 // 2))
    both = TABLE.seconds(load(15, 2, 17 + 16, 15 * 16 // 2))
    last = TABLE.seconds(load(0, 2, 18 + 17))
    assert first.token_seconds == pytest.approx([1 + one, 1 + one + both, 1 + one + both + last])
    assert second.token_seconds == pytest.approx(first.token_seconds[1:])
    assert second.first_token_seconds == pytest.approx(one + both - 0.01)
    assert run.seconds == pytest.approx(one + both + last)
    assert run.output_tokens_per_second == pytest.approx(5 / run.seconds)
    assert run.num_steps == 3


def test_thousands_of_requests_of_all_queues_and_the_report_of_them() -> None:
    draw = np.random.default_rng(1)
    trace = [
        request(float(at), int(draw.integers(8, 60)), int(draw.integers(1, 6)), int(draw.choice([-1, 0, 1])))
        for at in np.cumsum(draw.exponential(0.05, 1500))
    ]
    scheduling = SchedulingOptions(itl_seconds=0.3, eases_streams=True)
    run = simulate(SERVER, trace, scheduling=scheduling, max_queued=100)
    assert len(run.ended) + sum(run.errors.values()) == 1500
    assert set(run.errors) <= {"OverloadedError"}
    # What ended has as many tokens as the trace says, and streams kept their pace.
    for fate, wanted in zip(run.fates, trace, strict=True):
        assert fate.error is not None or len(fate.token_seconds) == wanted.output_tokens
    assert np.percentile(run.gaps_seconds, 99) <= 0.3
    document = replay_as_dict(run, trace, model="m")
    queues = document["queues"]
    assert isinstance(queues, dict)
    assert queues["high"]["p50"] < queues["normal"]["p50"] < queues["batch"]["p50"]
    table = replay_table(run, trace, model="m")
    for text in ("simulation of m: 1500 requests", "queue batch", "between tokens", "OverloadedError"):
        assert text in table


def test_what_can_never_run_is_refused_with_its_kind() -> None:
    run = simulate(SERVER, [request(0.0, 2000, 5), request(0.0, 20, 5)], scheduling=PLAIN_SCHEDULING)
    assert dict(run.errors) == {"ContextOverflowError": 1}
    assert len(run.ended) == 1
