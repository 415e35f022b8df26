"""Random traffic: whatever else runs, every request yields what it yields alone, and no block is lost.

The executor reads histories through the block tables (history_executor.py), so tables, prefix reuse and preemption
are checked by the tokens that come out; the pool is checked against all tables after every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.errors import ContextOverflowError, OverloadedError
from openautoglm.executor.protocol import StepBatch
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import (
    EOS,
    VOCAB,
    Collector,
    HistoryExecutor,
    isolated,
    make_engine,
    out_of_memory_above,
)


@dataclass
class Traffic:
    """What happens, and to whom it happened."""

    engine: Engine
    nan: bool
    collector: Collector = field(default_factory=Collector)
    accepted: dict[str, GenerationRequest] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    num_refused: int = 0

    def add(self, request: GenerationRequest) -> None:
        try:
            self.engine.add(request)
        except (ContextOverflowError, OverloadedError):
            self.num_refused += 1
        else:
            self.accepted[request.request_id] = request

    def abort(self, request_id: str) -> None:
        request = self.accepted[request_id]
        if not self.collector.finished(request_id, request.sampling.n):
            self.aborted.add(request_id)
        self.engine.abort(request_id)
        self.engine.integrity_check()

    def step(self) -> None:
        self.collector.take(self.engine.step())
        self.engine.integrity_check()

    def check(self) -> None:
        """All has come to its end, nothing is left over, and every outcome is the isolated one."""
        status = self.engine.status()
        assert (status.num_running, status.num_waiting) == (0, 0)
        assert status.num_free_blocks + status.num_cached_blocks == status.num_blocks
        context = self.engine.limits.context_tokens
        for name, request in self.accepted.items():
            assert self.collector.finished(name, request.sampling.n), name
            failed = name in self.collector.errors
            for choice in range(request.sampling.n):
                outcome = self.collector.outcomes[name, choice]
                expected = isolated(request, choice, context_tokens=context, nan=self.nan)
                if outcome.finish_reason == "abort" or (failed and outcome.finish_reason == "error"):
                    assert name in self.aborted or failed
                    length = len(outcome.tokens)
                    assert outcome.tokens == expected.tokens[:length]
                    assert outcome.logprobs == expected.logprobs[:length]
                else:
                    assert outcome == expected
            if failed:
                results = [
                    isolated(request, c, context_tokens=context, nan=self.nan) for c in range(request.sampling.n)
                ]
                assert self.nan
                assert "error" in {result.finish_reason for result in results}


def draw_request(choose: random.Random, name: str, prompts: list[list[int]]) -> GenerationRequest:
    """A request; prompts often share a beginning with an earlier one."""
    shared = choose.choice(prompts[-20:])[: choose.randint(0, 60)] if prompts and choose.random() < 0.7 else []
    prompt = shared[:40] + [choose.randrange(VOCAB) for _ in range(choose.randint(1, 20))]
    prompts.append(prompt)
    values: dict[str, Any] = {
        "seed": choose.randrange(1 << 64),
        "temperature": choose.choice([0.0, 1.0]),
        "n": choose.choice([1, 1, 1, 2, 3]),
        "max_tokens": choose.choice([None, 1, 5, 20, 40, 40]),
        "ignore_eos": choose.random() < 0.7,
        "include_stop": choose.random() < 0.3,
        "skip_special_tokens": choose.random() < 0.7,
        "logprobs": choose.choice([None, 0, 2]),
    }
    if values["max_tokens"] in (20, 40):
        values["min_tokens"] = choose.choice([0, 0, 10])
    if choose.random() < 0.3:
        values["stop"] = tuple(choose.choice(["ab", "abab", "xyc", "c.", "é", "aa"]) for _ in range(2))
    if choose.random() < 0.2:
        values["stop_token_ids"] = tuple(choose.sample(range(VOCAB), 3))
    if choose.random() < 0.2:
        values["repetition_penalty"] = 1.1
    return GenerationRequest(
        request_id=name,
        prompt_tokens=tuple(prompt),
        sampling=SamplingParams(**values),
        priority=choose.choice([0, 0, 0, -1, 3]),
        namespace=choose.choice(["", "", "tenant"]),
    )


def flaky(choose: random.Random) -> Any:
    """Memory runs out now and then, for batches above a size that changes."""

    def fail(batch: StepBatch) -> None:
        if choose.random() < 0.1:
            out_of_memory_above(choose.choice([1, 2, 8, 16]))(batch)

    return fail


def run_traffic(seed: int, *, num_requests: int) -> Traffic:
    choose = random.Random(seed)
    nan = choose.random() < 0.2
    executor = HistoryExecutor(
        choose.choice([16, 24, 32, 64]),
        block_tokens=choose.choice([3, 4, 8]),
        max_step_tokens=choose.choice([1, 5, 16, 64, 64, 256]),
        max_step_rows=choose.choice([1, 7, 16, 16]),
        nan=nan,
        fail=flaky(random.Random(seed + 1)) if choose.random() < 0.3 else None,
    )
    engine = make_engine(
        executor, context_tokens=choose.choice([60, 100, 300]), max_queued=choose.choice([5, 1000, 1000]),
        max_running=choose.choice([None, None, 3]),
    )  # fmt: skip
    traffic = Traffic(engine, nan)
    prompts: list[list[int]] = []
    rate = choose.choice([0.05, 0.3, 1.0])
    num_sent, num_steps = 0, 0
    while num_sent < num_requests or engine.has_work:
        while num_sent < num_requests and (choose.random() < rate or not engine.has_work):
            traffic.add(draw_request(choose, f"r{num_sent}", prompts))
            num_sent += 1
        if traffic.accepted and choose.random() < 0.02:
            traffic.abort(choose.choice(list(traffic.accepted)))
        traffic.step()
        num_steps += 1
        assert num_steps < 60_000, "no progress"
    return traffic


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_equals_isolated_runs(seed: int) -> None:
    run_traffic(seed, num_requests=80).check()


def test_the_random_traffic_meets_what_it_is_for() -> None:
    """Guards the simulation itself: over the seeds every mechanism is met often."""
    runs = [run_traffic(seed, num_requests=80) for seed in range(12)]
    status = [run.engine.status() for run in runs]
    assert sum(s.num_preemptions for s in status) > 30
    assert sum(s.prefix_hit_tokens for s in status) > 700
    assert sum(len(run.aborted) for run in runs) > 50
    assert sum(run.num_refused for run in runs) > 20
    assert sum(len(run.accepted) for run in runs) > 500
    reasons = {o.finish_reason for run in runs for o in run.collector.outcomes.values()}
    assert reasons == {"stop", "length", "abort", "error"}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1600))
def test_much_random_traffic_equals_isolated_runs(seed: int) -> None:
    run_traffic(seed, num_requests=100).check()


requests_strategy = st.lists(
    st.tuples(
        st.integers(0, 12),  # steps before it arrives
        st.integers(0, 3),  # which shared beginning
        st.integers(0, 40),  # how much of it
        st.lists(st.integers(0, EOS), min_size=1, max_size=6),
        st.integers(1, 30),  # max_tokens
        st.integers(1, 3),  # n
        st.integers(-1, 1),  # priority
        st.one_of(st.none(), st.integers(0, 20)),  # aborted after so many steps
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_blocks=st.integers(18, 40),
    block_tokens=st.sampled_from([4, 5, 16]),
    max_step_tokens=st.integers(1, 70),
    max_step_rows=st.integers(1, 6),
    arrivals=requests_strategy,
)
def test_any_arrivals_and_cancellations(
    num_blocks: int, block_tokens: int, max_step_tokens: int, max_step_rows: int, arrivals: list[tuple[Any, ...]]
) -> None:
    executor = HistoryExecutor(
        num_blocks, block_tokens=block_tokens, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows
    )
    traffic = Traffic(make_engine(executor), nan=False)
    plans: list[tuple[int, int, GenerationRequest]] = []
    when = 0
    for index, (wait, beginning, shared, tail, max_tokens, n, priority, abort_after) in enumerate(arrivals):
        when += wait
        sampling = SamplingParams(max_tokens=max_tokens, n=n, seed=index, temperature=1.0)
        request = GenerationRequest(
            request_id=f"r{index}", prompt_tokens=(*[beginning] * shared, *tail), sampling=sampling, priority=priority
        )
        plans.append((when, -1 if abort_after is None else when + abort_after, request))
    for now in range(100_000):
        for arrival, abort, request in plans:
            if arrival == now:
                traffic.add(request)
            if abort == now and request.request_id in traffic.accepted:
                traffic.abort(request.request_id)
        traffic.step()
        if now > max(max(arrival, abort) for arrival, abort, _ in plans) and not traffic.engine.has_work:
            break
    traffic.check()


def test_nobody_starves_while_better_placed_requests_keep_coming() -> None:
    """First come, first served among equals: a big early request ends although small later ones never stop."""
    engine = make_engine(HistoryExecutor(10, max_step_tokens=16, max_step_rows=4), context_tokens=160)
    sampling = SamplingParams(max_tokens=60, seed=1, ignore_eos=True)
    engine.add(GenerationRequest(request_id="small", prompt_tokens=(1,), sampling=sampling))
    engine.step()
    engine.add(GenerationRequest(request_id="big", prompt_tokens=tuple(range(95)), sampling=sampling))
    ended: list[str] = []
    for step in range(2000):
        if step % 3 == 0:
            engine.add(GenerationRequest(request_id=f"late{step}", prompt_tokens=(2, 3), sampling=sampling))
        ended += [event.request_id for event in engine.step() if event.finish_reason]
        if "big" in ended:
            break
    assert "big" in ended
    assert len(ended) < 40
