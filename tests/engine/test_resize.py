"""Resizing the pool between steps: exact moves, nothing lost, and no output that changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.resize import PoolResize
from openautoglm.errors import EngineError, OutOfMemoryError, OverloadedError
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import HistoryExecutor, make_engine
from tests.engine.test_real_model import OTHERS, PROMPT, SAMPLINGS, opened, request
from tests.engine.test_real_model import run as run_alone
from tests.engine.test_simulation import Traffic, draw_request

# ---- the pool ----


def test_live_blocks_move_to_the_last_freed_places_below() -> None:
    pool = BlockPool(8, 16)
    assert pool.allocate(8) == list(range(8))
    pool.release([1, 3, 4])  # free, the last released on top: 4, 3, 1
    assert pool.shrink(5) == [(5, 1), (6, 3), (7, 4)]
    assert (pool.num_blocks, pool.num_free, pool.num_live) == (5, 0, 5)
    pool.integrity_check([[0, 2], [1, 3, 4]])


def test_cached_blocks_stay_findable_as_far_as_they_fit_the_oldest_goes_first() -> None:
    pool = BlockPool(6, 16)
    pool.allocate(6)
    for block in range(1, 6):
        pool.register(block, bytes([block]))
    for block in (5, 2, 4, 3):
        pool.release([block])
    # live: 0 and 1; cached from old to young: 5, 2, 4, 3
    assert pool.shrink(4) == [(4, 2)]
    assert [pool.lookup(bytes([block])) for block in range(1, 6)] == [1, None, 3, 2, None]
    pool.integrity_check([[0, 1]])
    assert pool.shrink(3) == [(3, 2)], "what was in 4 is older than what is in 3, wherever it lies"
    assert [pool.lookup(bytes([block])) for block in range(1, 6)] == [1, None, 2, None, None]
    pool.integrity_check([[0, 1]])


def test_a_shared_block_moves_once_with_all_its_references() -> None:
    pool = BlockPool(3, 16)
    pool.allocate(3)
    pool.register(2, b"k")
    pool.share([2])
    pool.release([0])
    assert pool.shrink(2) == [(2, 0)]
    assert pool.lookup(b"k") == 0
    pool.integrity_check([[0, 1], [0]])
    pool.release([0])
    pool.release([0])
    assert (pool.num_cached, pool.num_live) == (1, 1)


def test_new_blocks_are_used_after_the_old_ones_in_ascending_order() -> None:
    pool = BlockPool(3, 16)
    pool.allocate(1)
    pool.grow(6)
    assert pool.allocate(5) == [1, 2, 3, 4, 5]
    pool.integrity_check([[0], [1, 2, 3, 4, 5]])


def test_impossible_sizes_of_a_pool_are_refused() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    for size in (2, 5):
        with pytest.raises(EngineError, match="3 are in use"):
            pool.shrink(size)
    with pytest.raises(EngineError, match="cannot grow to 3"):
        pool.grow(3)
    pool.integrity_check([[0, 1, 2]])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11)), max_size=60))
def test_any_uses_and_sizes_keep_every_content_in_its_table(num_blocks: int, actions: list[tuple[int, int]]) -> None:
    """An oracle beside the pool: memory as a list of contents that obeys the moves, tables by content."""
    pool = BlockPool(num_blocks, 16)
    memory: list[int] = [0] * num_blocks
    tables: list[list[int]] = []
    contents: list[list[int]] = []
    fresh = 0
    for action, number in actions:
        if action <= 1:
            taken = pool.allocate(number % 4)
            if taken is not None:
                for block in taken:
                    fresh += 1
                    memory[block] = fresh
                tables.append(taken)
                contents.append([memory[block] for block in taken])
                for block in taken[: number % 3]:
                    assert pool.register(block, memory[block].to_bytes(4, "little"))
        elif action == 2 and tables:
            pool.release(tables.pop(number % len(tables)))
            contents.pop(number % (len(tables) + 1))
        elif action == 3 and tables:
            pool.share(tables[number % len(tables)])
            tables.append(list(tables[number % len(tables)]))
            contents.append(list(contents[number % len(contents)]))
        elif action <= 5:
            target = 1 + number
            if target >= pool.num_blocks:
                memory.extend([0] * (target - pool.num_blocks))
                pool.grow(target)
            elif pool.num_live <= target:
                for old, new in pool.shrink(target):
                    assert old >= target > new
                    memory[new] = memory[old]
                    tables = [[new if block == old else block for block in table] for table in tables]
                del memory[target:]
        pool.integrity_check(tables)
        assert [[memory[block] for block in table] for table in tables] == contents
        for key, block in pool._block_of_key.items():
            assert memory[block] == int.from_bytes(key, "little")


# ---- the engine ----


def simple(name: str, prompt: tuple[int, ...], **values: object) -> GenerationRequest:
    sampling = SamplingParams(**{"seed": 1, "ignore_eos": True, "max_tokens": 8, **values})  # type: ignore[arg-type]
    return GenerationRequest(request_id=name, prompt_tokens=prompt, sampling=sampling)


def test_the_result_says_what_happened() -> None:
    executor = HistoryExecutor(10, max_blocks=12, block_tokens=4)
    engine = make_engine(executor, context_tokens=40)
    engine.add(simple("a", tuple(range(14)), max_tokens=6))
    engine.step()
    # 14 tokens take blocks 0 to 3; 20 tokens need 5
    assert engine.least_blocks == 5
    assert engine.resize_pool(10) == PoolResize(target_blocks=10, num_blocks=10, least_blocks=5)
    given = 6 * executor.layout().groups[0].block_bytes
    assert engine.resize_pool(4) == replace(
        PoolResize(target_blocks=4, num_blocks=5, least_blocks=5), given_back_bytes=given - 32
    )
    assert engine.resize_pool(99) == PoolResize(target_blocks=99, num_blocks=12, least_blocks=5)
    assert engine.status().num_blocks == 12
    while engine.has_work:
        engine.step()
    # 19 tokens were computed: four full blocks are cached
    result = engine.resize_pool(2)
    assert (result.num_blocks, result.least_blocks, result.num_dropped, result.num_moved) == (2, 1, 2, 0)
    engine.integrity_check()


def test_blocks_in_use_beyond_the_target_are_counted_and_nothing_changes() -> None:
    engine = make_engine(HistoryExecutor(12, block_tokens=4), context_tokens=40)
    for name in "abc":
        engine.add(simple(name, tuple(range(ord(name) - 90, ord(name) - 79)), max_tokens=1 + 4))
    engine.step()
    assert engine.status().num_free_blocks == 3
    assert engine.resize_pool(5) == PoolResize(target_blocks=5, num_blocks=12, least_blocks=4, num_missing=4)
    assert engine.resize_pool(1) == PoolResize(target_blocks=1, num_blocks=12, least_blocks=4, num_missing=5)
    engine.abort("b")
    engine.abort("c")
    engine.integrity_check()
    result = engine.resize_pool(5)
    assert (result.num_blocks, result.num_missing, result.num_moved) == (5, 0, 2), "two cached blocks fit and moved"


def test_refused_growth_changes_nothing() -> None:
    executor = HistoryExecutor(6, max_blocks=20, block_tokens=4)
    engine = make_engine(executor)
    executor.most_blocks = 9
    with pytest.raises(OutOfMemoryError, match="no memory for 10 blocks"):
        engine.resize_pool(10)
    assert engine.status().num_blocks == executor.layout().num_blocks == 6
    assert engine.resize_pool(9).num_blocks == 9
    engine.integrity_check()


def test_a_request_that_the_shrunk_pool_cannot_hold_is_told_to_come_back() -> None:
    engine = make_engine(HistoryExecutor(10, block_tokens=4), context_tokens=40)
    engine.resize_pool(5)
    with pytest.raises(OverloadedError, match="may need 6 blocks of KV cache, and the pool has shrunk to 5") as error:
        engine.add(simple("big", tuple(range(16)), max_tokens=5))
    assert error.value.retry_after_seconds >= 1
    engine.add(simple("fits", tuple(range(16)), max_tokens=4))
    engine.resize_pool(10)
    engine.add(simple("big", tuple(range(16)), max_tokens=5))
    ended = set()
    while engine.has_work:
        ended |= {event.request_id for event in engine.step() if event.finish_reason == "length"}
    assert ended == {"big", "fits"}


def test_smaller_steps_reach_the_executor_and_keep_a_place_for_every_choice() -> None:
    executor = HistoryExecutor(40, max_step_tokens=64, max_step_rows=8)
    executor.keep_batches = True
    engine = make_engine(executor)
    assert engine.limit_step_tokens(20) == 44
    engine.add(simple("a", tuple(range(50))))
    while engine.has_work:
        engine.step()
    assert [len(batch.tokens) for batch in executor.batches] == [20, 20, 10] + [1] * 7
    assert engine.limit_step_tokens(1) == 12, "8 choices may run"
    assert executor.layout().max_step_tokens == 8
    assert engine.limit_step_tokens(1000) == 0
    assert executor.layout().max_step_tokens == 64


def run_resized(seed: int, *, num_requests: int) -> tuple[Traffic, list[PoolResize]]:
    choose = random.Random(seed)
    block_tokens = choose.choice([3, 4, 8])
    executor = HistoryExecutor(
        choose.choice([16, 32, 64]), max_blocks=80, block_tokens=block_tokens,
        max_step_tokens=choose.choice([8, 64, 256]), max_step_rows=choose.choice([4, 16]),
    )  # fmt: skip
    engine = make_engine(executor, context_tokens=choose.choice([60, 100]), max_queued=1000)
    traffic = Traffic(engine, nan=False)
    prompts: list[list[int]] = []
    results = []
    rate = choose.choice([0.3, 1.0])
    num_sent = 0
    while num_sent < num_requests or engine.has_work:
        if num_sent < num_requests and choose.random() < rate:
            traffic.add(draw_request(choose, f"r{num_sent}", prompts))
            num_sent += 1
        if choose.random() < 0.3:
            executor.most_blocks = choose.choice([None, 40])
            try:
                results.append(engine.resize_pool(choose.randint(-1, 90)))
            except OutOfMemoryError:
                assert executor.most_blocks == 40
            engine.integrity_check()
            assert engine.status().num_blocks == executor.layout().num_blocks
        if choose.random() < 0.05:
            engine.limit_step_tokens(choose.randint(1, 300))
        traffic.step()
    executor.most_blocks = None
    assert engine.resize_pool(80).num_blocks == 80
    return traffic, results


@pytest.mark.parametrize("seed", range(12))
def test_random_traffic_in_a_pool_of_changing_size_equals_isolated_runs(seed: int) -> None:
    traffic, results = run_resized(seed, num_requests=60)
    traffic.check()
    assert sum(result.num_moved for result in results) > 10
    assert any(result.num_missing for result in results)
    assert min(result.num_blocks for result in results) < max(result.num_blocks for result in results)


# ---- the embedded model ----


@pytest.mark.parametrize(
    ("quant", "kv"), [(NumberFormat.INT8, None), (NumberFormat.INT4, NumberFormat.INT8)], ids=["int8", "int4-int8"]
)
def test_resizing_under_way_changes_no_byte(quant: NumberFormat, kv: NumberFormat | None) -> None:
    """Beside an engine that was never resized: the same tokens and logprobs by bytes, the ledger exact at each size."""
    choose = random.Random(5)
    with opened(quant, kv) as engine:
        expected = run_alone(engine.engine, [request(engine, "a", PROMPT, SAMPLINGS["sampled"])])["a"]
    with opened(quant, kv) as engine:
        pool = engine.executor.layout()
        charged = engine.ledger.usage()["KV pool"]
        block_bytes = pool.groups[0].block_bytes
        targets: list[int] = []

        def resize() -> None:
            result = engine.engine.resize_pool(choose.choice([1, 20, 40, 60, pool.num_blocks]))
            targets.append(result.num_blocks)
            difference = (pool.num_blocks - result.num_blocks) * block_bytes
            assert abs(charged - engine.ledger.usage()["KV pool"] - difference) < 4096
            assert engine.executor.kv_bytes == -(-result.num_blocks * block_bytes // 4096) * 4096

        batch = [request(engine, f"o{i}", text, SAMPLINGS["greedy"]) for i, text in enumerate(OTHERS)]
        batch.insert(3, request(engine, "a", PROMPT, SAMPLINGS["sampled"]))
        engine.engine.step = resizing(engine.engine.step, resize)  # type: ignore[method-assign]
        outputs = run_alone(engine.engine, batch)
        assert outputs["a"] == expected
        assert len(set(targets)) > 3
        engine.engine.resize_pool(pool.num_blocks)
        assert engine.ledger.usage()["KV pool"] == charged


def resizing(step, resize):
    def both():
        resize()
        return step()

    return both
