"""What is priced for the index of a pool is what it takes, by tracemalloc, and a ledger is charged for it."""

from __future__ import annotations

import tracemalloc

import pytest

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.ladder import Ladder, LoadedBytes
from openautoglm.engine.prefix import KEY_BYTES
from openautoglm.errors import OutOfMemoryError
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.runtime import BLOCK_INDEX_BYTES, block_index_bytes
from tests.engine.history_executor import HistoryExecutor, make_engine

# What a key and a number take beyond what was asked for, in the allocator's steps of 16 bytes.
ROUNDED_BYTES = (64 - 49) + (32 - 28)


def fill(pool: BlockPool, numbers: range) -> None:
    """Take, register and release blocks, some at a time, under keys of the length that the cache's own have."""
    for begin in numbers:
        blocks = pool.allocate(numbers.step)
        assert blocks is not None
        for number, block in enumerate(blocks, begin):
            assert pool.register(block, number.to_bytes(KEY_BYTES, "little"))
        pool.release(blocks)


# The second is just above a third of a power of two, where dictionaries are largest for what they hold.
@pytest.mark.parametrize(("num_blocks", "num_at_once"), [(50_000, 50), (22_000, 1)])
def test_a_full_pools_index_takes_what_is_priced(num_blocks: int, num_at_once: int) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pool = BlockPool(num_blocks, 16)
        fill(pool, range(0, 8 * num_blocks, num_at_once))
        kept, peak = (size - before for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert pool.num_cached == num_blocks
    priced = block_index_bytes(num_blocks)
    assert peak + num_blocks * ROUNDED_BYTES <= priced <= 1.5 * peak
    assert kept < priced
    assert pool.index_bytes == priced
    assert pool.drop_cached() == num_blocks
    assert pool.index_bytes == 0


def test_the_charge_follows_the_largest_pool() -> None:
    ledger = Ledger(20 * BLOCK_INDEX_BYTES)
    charge = ledger.reserve("block index", block_index_bytes(8))
    pool = BlockPool(8, 16, charge=charge)
    pool.grow(12)
    assert charge.num_bytes == 12 * BLOCK_INDEX_BYTES
    pool.shrink(3)
    pool.grow(11)
    assert charge.num_bytes == 12 * BLOCK_INDEX_BYTES
    pool.grow(20)
    assert ledger.free_bytes == 0
    with pytest.raises(OutOfMemoryError):
        pool.grow(21)
    assert (pool.num_blocks, pool.num_free, charge.num_bytes) == (20, 20, 20 * BLOCK_INDEX_BYTES)
    pool.integrity_check([])


def test_growth_that_the_index_has_no_room_for_changes_nothing() -> None:
    ledger = Ledger(10 * BLOCK_INDEX_BYTES)
    executor = HistoryExecutor(8, max_blocks=12)
    engine = make_engine(executor, index_charge=ledger.reserve("block index", block_index_bytes(8)))
    with pytest.raises(OutOfMemoryError):
        engine.resize_pool(11)
    assert engine.pool.num_blocks == executor.layout().num_blocks == 8
    assert engine.resize_pool(10).num_blocks == executor.layout().num_blocks == 10
    engine.integrity_check()


def test_a_larger_budget_pays_for_blocks_with_their_index() -> None:
    executor = HistoryExecutor(8, max_blocks=32)
    block_bytes = executor.layout().groups[0].block_bytes
    budget = 1 << 20
    ledger = Ledger(budget)
    charge = ledger.reserve("block index", block_index_bytes(8))
    engine = make_engine(executor, index_charge=charge)
    loaded = LoadedBytes(budget_bytes=budget, fixed_bytes=budget - 8 * block_bytes, block_bytes=block_bytes)
    ladder = Ladder(engine, loaded, ledger)
    more = block_bytes + BLOCK_INDEX_BYTES
    for budget_bytes, blocks in (
        (budget + 4 * more - 1, 11),
        (budget + 4 * more, 12),
        # Fewer blocks give their own bytes back, and none of their index.
        (budget + 4 * more - 1, 11),
        (budget + 3 * more + BLOCK_INDEX_BYTES, 11),
        (budget + 5 * more, 13),
    ):
        ladder.set_budget(budget_bytes)
        assert engine.pool.num_blocks == blocks
    assert charge.num_bytes == block_index_bytes(13)
    engine.integrity_check()
