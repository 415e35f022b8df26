"""Weights, KV pool and workspace: exact bytes, and every misuse refused."""

from __future__ import annotations

import numpy as np
import pytest

from openautoglm.native import _core
from openautoglm.spec.formats import NumberFormat, WeightFormat

FORMATS = [
    (0, WeightFormat(number=NumberFormat.F32)),
    (1, WeightFormat(number=NumberFormat.BF16)),
    (2, WeightFormat(number=NumberFormat.INT8)),
    *((3, WeightFormat(number=NumberFormat.INT4, group=group)) for group in (32, 64, 128)),
    *((4, WeightFormat(number=NumberFormat.NF4, group=group)) for group in (32, 64, 128)),
]
SIZES = [(1, 1), (33, 100), (64, 128), (70, 129), (95, 513)]


@pytest.fixture
def pool() -> _core.ThreadPool:
    return _core.ThreadPool(2)


def test_a_store_takes_what_the_formats_say(pool: _core.ThreadPool) -> None:
    shapes = [(number, *size, weight.group) for number, weight in FORMATS for size in SIZES]
    store = _core.WeightStore(pool, shapes)
    expected = [weight.packed_bytes(*size) for _, weight in FORMATS for size in SIZES]
    assert [store.matrix_bytes(index) for index in range(len(shapes))] == expected
    assert store.packed_bytes == sum(expected)
    assert 0 <= store.allocated_bytes - sum(expected) < 4096


def test_the_first_bad_row_is_named(pool: _core.ThreadPool) -> None:
    store = _core.WeightStore(pool, [(2, 300, 128, 0)])
    rows = np.ones((100, 128), dtype=np.float32)
    rows[[40, 77], [3, 5]] = np.nan, np.inf
    assert store.pack_rows(0, 150, 1, rows) == 190
    assert store.pack_rows(0, 1, 2, rows) == 81
    assert store.rows_packed(0) == 0


@pytest.mark.parametrize(
    ("begin", "step", "count"), [(-1, 1, 1), (0, 1, 41), (40, 1, 1), (1, 2, 21), (0, 0, 2), (0, -1, 2), (39, 1, 2)]
)
def test_rows_outside_the_matrix_are_refused(pool: _core.ThreadPool, begin: int, step: int, count: int) -> None:
    store = _core.WeightStore(pool, [(2, 40, 128, 0)])
    with pytest.raises(IndexError):
        store.pack_rows(0, begin, step, np.ones((count, 128), dtype=np.float32))


def test_rows_of_the_wrong_kind_are_refused(pool: _core.ThreadPool) -> None:
    store = _core.WeightStore(pool, [(2, 40, 128, 0)])
    with pytest.raises(ValueError, match="129 values"):
        store.pack_rows(0, 0, 1, np.ones((1, 129), dtype=np.float32))
    with pytest.raises(ValueError, match="float32, float16 or uint16"):
        store.pack_rows(0, 0, 1, np.ones((1, 128), dtype=np.int64))
    with pytest.raises(IndexError):
        store.pack_rows(1, 0, 1, np.ones((1, 128), dtype=np.float32))


@pytest.mark.parametrize("shape", [(2, 0, 8, 0), (2, 8, 131_073, 0), (3, 8, 8, 16), (2, 8, 8, 64), (9, 8, 8, 0)])
def test_impossible_matrices_are_refused(pool: _core.ThreadPool, shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"outputs|group|format"):
        _core.WeightStore(pool, [shape])


def test_a_store_that_cannot_be_allocated_raises_memory_error(pool: _core.ThreadPool) -> None:
    with pytest.raises(MemoryError):
        _core.WeightStore(pool, [(0, 1 << 31, 131_072, 0)] * 64)


def test_blocks_round_trip_and_copy() -> None:
    kv = _core.KvPool(10, 640, 2000)
    assert (kv.blocks_per_slab, kv.num_slabs) == (3, 4)
    data = np.random.default_rng(0).integers(0, 256, 3 * 640, dtype=np.uint8).tobytes()
    kv.import_blocks([7, 0, 9], data)
    assert kv.export_blocks([7, 0, 9]) == data
    kv.copy(7, 3)
    assert kv.export_blocks([3, 9]) == data[:640] + data[1280:]
    assert kv.export_blocks([4]) == bytes(640)
    for block in (-1, 10):
        with pytest.raises(IndexError, match="not one of the pool's 10"):
            kv.copy(0, block)
        with pytest.raises(IndexError):
            kv.export_blocks([block])
    with pytest.raises(ValueError, match="1280 bytes, got 1279"):
        kv.import_blocks([0, 1], bytes(1279))


def resident_bytes() -> int:
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))


def test_memory_comes_when_touched_and_goes_when_trimmed() -> None:
    block_bytes, num_blocks = 64 << 10, 512
    total = block_bytes * num_blocks
    before = resident_bytes()
    kv = _core.KvPool(num_blocks, block_bytes, 4 << 20)
    assert kv.allocated_bytes == total
    assert resident_bytes() - before < total // 8
    kv.touch()
    assert resident_bytes() - before > total * 0.95
    kv.import_blocks([100], b"\x07" * block_bytes)
    assert kv.release_unused([100]) == total - (4 << 20)
    assert resident_bytes() - before < total // 4
    assert kv.export_blocks([100]) == b"\x07" * block_bytes
    assert kv.export_blocks([0]) == bytes(block_bytes)
    assert kv.release_unused([100, 0]) == 0


def test_slabs_that_share_pages_give_back_only_whole_pages() -> None:
    kv = _core.KvPool(64, 1000, 1000)
    kv.touch()
    kv.import_blocks([10, 40], b"\x05" * 2000)
    assert kv.release_unused([10, 40]) % 4096 == 0
    assert kv.export_blocks([10, 40]) == b"\x05" * 2000


def mapped_bytes(name: str) -> int:
    """VmData counts writable private mappings, VmRSS what is in memory."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


def test_a_pool_shrinks_and_grows_at_the_same_addresses() -> None:
    block_bytes, num_blocks = 48 << 10, 700
    kv = _core.KvPool(num_blocks, block_bytes, 4 << 20, 2 * num_blocks)
    kv.touch()
    before, data_before = resident_bytes(), mapped_bytes("VmData")
    content = np.random.default_rng(1).integers(0, 256, 3 * block_bytes, dtype=np.uint8).tobytes()
    kv.import_blocks([0, 7, 99], content)
    assert kv.allocated_bytes == kv.resident_bytes == num_blocks * block_bytes
    assert kv.resize(100) == 600 * block_bytes
    assert (kv.num_blocks, kv.max_blocks, kv.num_slabs) == (100, 1400, 2)
    assert kv.allocated_bytes == kv.resident_bytes == 100 * block_bytes
    assert abs(before - resident_bytes() - 600 * block_bytes) < 1 << 20
    assert data_before - mapped_bytes("VmData") == 600 * block_bytes, "the addresses stay, the commitment goes"
    assert kv.export_blocks([0, 7, 99]) == content
    with pytest.raises(IndexError, match="not one of the pool's 100"):
        kv.export_blocks([100])
    assert kv.resize(1400) == 0
    assert kv.allocated_bytes == 1400 * block_bytes
    assert kv.resident_bytes == 100 * block_bytes, "growth takes memory as it is written"
    assert kv.export_blocks([100, 1399]) == bytes(2 * block_bytes), "what was cut off is not seen again"
    kv.import_blocks([1399], content[:block_bytes])
    assert kv.export_blocks([0, 7, 99, 1399]) == content + content[:block_bytes]
    assert kv.resize(1400) == 0


@pytest.mark.parametrize("num_blocks", [0, -1, 21, 1 << 60])
def test_a_pool_beyond_its_addresses_is_refused_and_stays(num_blocks: int) -> None:
    kv = _core.KvPool(10, 5000, 10000, 20)
    kv.import_blocks([9], b"\x03" * 5000)
    with pytest.raises(ValueError, match="from 1 to 20"):
        kv.resize(num_blocks)
    assert (kv.num_blocks, kv.allocated_bytes) == (10, 53248)
    assert kv.export_blocks([9]) == b"\x03" * 5000


def test_blocks_that_share_a_page_survive_any_resizes() -> None:
    kv = _core.KvPool(64, 1000, 1000, 64)
    choose = np.random.default_rng(2)
    expected: dict[int, bytes] = {}
    for _ in range(300):
        count = int(choose.integers(1, 65))
        kv.resize(count)
        expected = {block: expected.get(block, bytes(1000)) for block in range(count)}
        block = int(choose.integers(count))
        expected[block] = choose.bytes(1000)
        kv.import_blocks([block], expected[block])
        assert kv.allocated_bytes == -(-count * 1000 // 4096) * 4096
        # What shares a page with a block that stayed may be seen again: nobody reads a block before writing it.
        known = [b for b in expected if expected[b] != bytes(1000)]
        assert kv.export_blocks(known) == b"".join(expected[b] for b in known)
