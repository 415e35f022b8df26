"""What is priced for spilled blocks is what they take, by tracemalloc and by the process's own pages."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest

from openautoglm.engine.prefix import KEY_BYTES
from openautoglm.engine.request import Sequence
from openautoglm.engine.spill import Spill
from openautoglm.memory.spill import (
    NUM_BUFFERS,
    PIECE_INDEX_BYTES,
    host_tier_bytes,
    num_slots,
    overhead_bytes,
    slot_bytes,
    spill_bytes,
)
from openautoglm.memory.spill_file import SpillFile
from openautoglm.memory.spill_store import SpillStore
from openautoglm.memory.tiers import DiskTier
from openautoglm.spec.spill import SpillTiers
from tests.engine.history_executor import HistoryExecutor, make_engine
from tests.engine.test_ladder import request

PIECE = 5000


def test_the_formulas_are_whole_pieces() -> None:
    assert (slot_bytes(1), slot_bytes(4096), slot_bytes(4097)) == (4096, 4096, 8192)
    assert num_slots(100_000, PIECE) == 12
    tiers = SpillTiers(memory_bytes=100_000, disk_bytes=50_000)
    assert host_tier_bytes(tiers, PIECE) == 12 * 8192
    assert overhead_bytes(tiers, PIECE) == NUM_BUFFERS * 8192 + (12 + 6) * PIECE_INDEX_BYTES
    assert spill_bytes(tiers, PIECE) == 12 * 8192 + overhead_bytes(tiers, PIECE)
    assert spill_bytes(SpillTiers(), PIECE) == 0
    assert not SpillTiers()
    assert SpillTiers(disk_bytes=1)


@pytest.mark.parametrize("count", [4000, 5500, 11000])  # around where dictionaries double
def test_the_index_of_a_piece_takes_what_is_priced(count: int, tmp_path: Path) -> None:
    engine = make_engine(HistoryExecutor(64))
    engine.add(request("waits"))
    (sequence,) = engine.scheduler.waiting
    executor = HistoryExecutor(8)
    choose = random.Random(1)
    store = SpillStore(disk=DiskTier(count * 4096, 64, SpillFile(tmp_path, 64)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        spill = Spill(store, executor)
        _fill(spill, sequence, choose, count)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert spill.num_spilled_blocks == count
    assert 0.5 * PIECE_INDEX_BYTES < taken / count <= PIECE_INDEX_BYTES
    store.close()


def _fill(spill: Spill, sequence: Sequence, choose: random.Random, count: int) -> None:
    keys = [choose.randbytes(KEY_BYTES) for _ in range(count)]
    spill.want(sequence, keys)
    for number, key in enumerate(keys):
        spill.evicted(number % 8, key, used_again=True)


@pytest.mark.parametrize("payload_bytes", [1 << 20])
def test_writing_and_reading_need_no_more_than_the_buffers(payload_bytes: int, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        store = SpillStore(disk=DiskTier(8 * payload_bytes, payload_bytes, SpillFile(tmp_path, payload_bytes)))
        for number in range(4):
            store.put(bytes([number]), bytes(payload_bytes))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        data = store.get(b"\0")
        assert data is not None
        # The file's buffer is a mapping of its own, which tracemalloc does not see.
        assert tracemalloc.get_traced_memory()[1] - before <= (NUM_BUFFERS - 1) * slot_bytes(payload_bytes) + 4096
    finally:
        tracemalloc.stop()
    store.close()
