"""`BlockPool`: exact ids, eviction order, and an integrity check that can fail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.engine.blocks import BlockPool
from openautoglm.errors import EngineError


def test_blocks_come_in_order_and_the_last_released_first() -> None:
    pool = BlockPool(6, 16)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(2) == [3, 4]
    pool.release([0, 1, 2])
    # released from the end of the table: 2, 1, 0; a stack gives 0 first
    assert pool.allocate(4) == [0, 1, 2, 5]
    assert (pool.num_free, pool.num_cached, pool.num_live) == (0, 0, 6)


def test_too_many_takes_nothing() -> None:
    pool = BlockPool(4, 16)
    assert pool.allocate(5) is None
    assert pool.num_free == 4
    assert pool.allocate(0) == []


def test_cached_blocks_are_evicted_oldest_first_and_from_the_end_of_a_table() -> None:
    pool = BlockPool(5, 16)
    first = pool.allocate(2)
    second = pool.allocate(2)
    assert first == [0, 1]
    assert second == [2, 3]
    for block in range(4):
        assert pool.register(block, bytes([block]))
    pool.release([0, 1])
    pool.release([2, 3])
    assert (pool.num_free, pool.num_cached, pool.num_live) == (1, 4, 0)
    assert pool.allocate(1) == [4], "free blocks go before cached ones"
    assert pool.allocate(1) == [1], "the end of the table that was released first"
    assert pool.lookup(b"\x01") is None
    assert pool.lookup(b"\x00") == 0
    pool.share([0])
    assert pool.allocate(2) == [3, 2]
    assert pool.allocate(1) is None
    pool.integrity_check([[4], [1], [0], [3, 2]])


def test_sharing_again_moves_a_block_to_the_young_end() -> None:
    pool = BlockPool(2, 16)
    pool.allocate(2)
    pool.register(0, b"a")
    pool.register(1, b"b")
    pool.release([0])
    pool.release([1])
    pool.share([0])
    pool.release([0])
    assert pool.allocate(1) == [1]


def test_a_shared_block_lives_until_its_last_holder() -> None:
    pool = BlockPool(2, 16)
    pool.allocate(1)
    pool.share([0])
    pool.release([0])
    assert pool.num_live == 1
    pool.release([0])
    assert pool.num_free == 2


def test_equal_content_in_two_blocks_keeps_the_first() -> None:
    pool = BlockPool(2, 16)
    pool.allocate(2)
    assert pool.register(0, b"a")
    assert not pool.register(1, b"a")
    assert pool.register(0, b"a")
    pool.release([1])
    pool.release([0])
    assert (pool.num_free, pool.num_cached) == (1, 1)
    assert pool.lookup(b"a") == 0


def test_dropping_cached_blocks() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    for block in range(3):
        pool.register(block, bytes([block]))
        pool.release([block])
    assert pool.drop_cached(2) == 2
    assert [pool.lookup(bytes([block])) for block in range(3)] == [None, None, 2]
    assert pool.drop_cached() == 1
    assert pool.num_free == 4
    pool.integrity_check([])


def test_releasing_twice_is_reported() -> None:
    pool = BlockPool(2, 16)
    pool.allocate(1)
    pool.release([0])
    with pytest.raises(EngineError, match="block 0 was released more often"):
        pool.release([0])


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(EngineError, match="got 0 blocks"):
        BlockPool(0, 16)


def test_the_integrity_check_sees_a_leak_and_a_double_use() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(2)
    pool.integrity_check([[0, 1]])
    with pytest.raises(EngineError, match=r"blocks \[1\] differ"):
        pool.integrity_check([[0]])
    with pytest.raises(EngineError, match=r"blocks \[0\] differ"):
        pool.integrity_check([[0, 1], [0]])


@pytest.mark.parametrize("damage", ["free", "cached", "key", "lost"])
def test_the_integrity_check_sees_inner_damage(damage: str) -> None:
    pool = BlockPool(4, 16)
    pool.allocate(2)
    pool.register(0, b"a")
    pool.release([0])
    pool.integrity_check([[1]])
    if damage == "free":
        pool._free.append(pool._free[-1])
    elif damage == "cached":
        pool._cached[1] = None
    elif damage == "key":
        pool._keys[0] = b"b"
    else:
        pool._free.pop()
    with pytest.raises(EngineError, match="inconsistent"):
        pool.integrity_check([[1]])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=80))
def test_any_sequence_of_uses_keeps_the_pool_whole(num_blocks: int, actions: list[tuple[int, int]]) -> None:
    pool = BlockPool(num_blocks, 16)
    tables: list[list[int]] = []
    keys = 0
    for action, number in actions:
        if action <= 1:
            taken = pool.allocate(number % 4)
            assert (taken is None) == (number % 4 > num_blocks - len({b for table in tables for b in table}))
            tables.extend([] if taken is None else [taken])
        elif action == 2 and tables:
            pool.release(tables.pop(number % len(tables)))
        elif action == 3 and tables:
            copy = list(tables[number % len(tables)])
            pool.share(copy)
            tables.append(copy)
        elif action == 4 and tables:
            for block in tables[number % len(tables)]:
                if pool._keys[block] is None:
                    keys += 1
                    assert pool.register(block, keys.to_bytes(4, "little"))
        elif action == 5:
            pool.drop_cached(number)
        pool.integrity_check(tables)
