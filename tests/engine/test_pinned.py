"""Pinned prompts: computed once, read by every tenant, written by none, in the pool for good."""

from __future__ import annotations

import pytest

from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.engine import Engine
from openautoglm.engine.pinned import preload
from openautoglm.engine.warmup import REHEARSAL_SECONDS, rehearse
from openautoglm.errors import ConfigError, OverloadedError
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import HistoryExecutor, WordTokenizer, isolated, make_engine, run_all

PINNED = tuple(range(20, 20 + 38))  # two whole blocks of 16, and 6 tokens that fill none
SAMPLING = SamplingParams(max_tokens=5, temperature=0.0, seed=3, ignore_eos=True)


def ask(name: str, prompt: tuple[int, ...], namespace: str) -> GenerationRequest:
    return GenerationRequest(request_id=name, prompt_tokens=prompt, sampling=SAMPLING, namespace=namespace)


def cached(engine: Engine, prompt: tuple[int, ...], namespace: str) -> int:
    """Run a request; return its cached tokens, its answer compared with what it yields alone."""
    request = ask(f"r{engine.status().prompt_tokens}", prompt, namespace)
    events = []
    engine.add(request)
    while engine.has_work:
        events += engine.step()
        engine.integrity_check()
    tokens = tuple(token for event in events for token in event.tokens)
    assert tokens == isolated(request, 0, context_tokens=engine.limits.context_tokens).tokens
    return events[-1].cached_tokens


def pin(engine: Engine, *prompts: tuple[int, ...]) -> Engine:
    preload(engine._executor, engine.pool, engine.scheduler.prefix, prompts, engine.limits)
    return engine


def pinned_engine(num_blocks: int = 24, **options: object) -> Engine:
    executor = HistoryExecutor(num_blocks, **options)  # type: ignore[arg-type]
    engine = make_engine(executor, context_tokens=160)
    return pin(engine, PINNED)


def test_every_tenant_reads_what_is_pinned_and_nothing_of_another() -> None:
    engine = pinned_engine()
    assert cached(engine, (*PINNED, *range(40)), "a") == 32
    assert cached(engine, (*PINNED, *range(40)), "a") == 64, "its own blocks come after the pinned ones"
    assert cached(engine, (*PINNED, *range(40)), "b") == 32, "what tenant a wrote behind them is not to be seen"
    assert cached(engine, tuple(range(60, 100)), "b") == 0
    assert cached(engine, tuple(range(60, 100)), "a") == 0
    assert cached(engine, tuple(range(60, 100)), "") == 0


def test_no_namespace_is_that_of_pinned_prompts() -> None:
    roots = [pinned_engine().scheduler.prefix.public_root for _ in range(2)]
    assert roots[0] != roots[1], "it comes of a secret of the process"
    engine = make_engine(HistoryExecutor(16), context_tokens=160)
    pin(engine, tuple(range(20, 36)))
    # A request that computed the second block itself must not have made it public.
    assert cached(engine, PINNED, "public") == 16
    assert cached(engine, PINNED, "other") == 16


def test_pinned_blocks_are_never_evicted_and_follow_the_pool() -> None:
    engine = pinned_engine(num_blocks=14, max_step_tokens=16)
    for number in range(8):
        assert cached(engine, tuple((number + 3 * i) % 90 for i in range(100)), f"t{number}") == 0
    assert cached(engine, (*PINNED, 1), "z") == 32
    engine.resize_pool(14 - 2)
    assert engine.pool.num_pinned == 2
    assert cached(engine, (*PINNED, 1), "y") == 32
    # The pool keeps a place for pinned blocks: a request that needs all the rest has none of theirs.
    assert engine.resize_pool(1).num_blocks == 3
    with pytest.raises(OverloadedError, match="shrunk to 1"):
        engine.add(ask("large", tuple(range(30)), "x"))


def test_equal_beginnings_are_kept_once() -> None:
    engine = make_engine(HistoryExecutor(24), context_tokens=160)
    pin(engine, PINNED, (*PINNED[:16], *range(40)))
    assert engine.pool.num_pinned == 2 + 2
    assert cached(engine, (*PINNED[:16], *range(40), 1), "a") == 48


def test_what_leaves_no_room_for_a_request_is_refused() -> None:
    engine = make_engine(HistoryExecutor(11), context_tokens=160)
    with pytest.raises(ConfigError, match="leaves no room"):
        pin(engine, PINNED)
    with pytest.raises(ConfigError, match="leaves no room"):
        pin(make_engine(HistoryExecutor(40), context_tokens=32), PINNED)


def test_a_rehearsal_runs_steps_up_to_the_largest_and_leaves_nothing() -> None:
    executor = HistoryExecutor(40, max_step_tokens=100)
    executor.keep_batches = True
    engine = make_engine(executor, context_tokens=300)
    rehearse(executor, WordTokenizer(), context_tokens=300, max_running=4)
    assert max(len(batch.tokens) for batch in executor.batches) == 100
    assert any(len(batch.row_offsets) == 5 and len(batch.tokens) == 4 for batch in executor.batches), "four decode"
    assert engine.status().num_steps == 0
    assert engine.pool.num_free == 40
    assert cached(engine, tuple((16 + 7 * i) % 101 for i in range(40)), "") == 0


def test_a_rehearsal_ends_when_its_time_is_over() -> None:
    executor = HistoryExecutor(40, max_step_tokens=64)
    now = 0.0

    def clock() -> float:
        return now

    def slow(batch: object) -> None:
        nonlocal now
        now += REHEARSAL_SECONDS / 8

    executor.fail = slow
    rehearse(executor, WordTokenizer(), context_tokens=300, max_running=4, clock=clock)
    assert now <= REHEARSAL_SECONDS, "the first prompts took half of the time: there is none for longer ones"


def test_all_run_together_with_pinned_prompts_as_alone() -> None:
    engine = pinned_engine(num_blocks=20)
    requests = [ask(f"r{i}", (*PINNED[: 16 + 4 * i], *range(i, 20 + i)), f"t{i % 2}") for i in range(6)]
    collector = run_all(engine, requests)
    for request in requests:
        expected = isolated(request, 0, context_tokens=engine.limits.context_tokens)
        assert collector.outcomes[request.request_id, 0].tokens == expected.tokens
