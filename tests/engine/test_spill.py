"""Spilling: what is set back goes on from its stored blocks, with the same output, whatever happens to them."""

from __future__ import annotations

import errno
import logging
import os
import random
from pathlib import Path

import pytest

from openautoglm.memory.ledger import Ledger
from openautoglm.memory.spill_file import SpillFile
from openautoglm.memory.spill_store import SpillStore
from openautoglm.memory.tiers import DiskTier, HostTier
from tests.engine.history_executor import HistoryExecutor, make_engine
from tests.engine.test_simulation import Traffic, draw_request

PIECE = 5000


class FullAtByte(SpillFile):
    """Really writes, up to a byte; from there on as a full disk does."""

    end = 3 * 8192 + 4096

    def _write_some(self, view: memoryview, offset: int) -> int:
        room = self.end - offset
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._write_some(view[: min(len(view), room)], offset)


def piece(number: int) -> bytes:
    return random.Random(number).randbytes(PIECE)


def test_a_disk_tier_gives_back_every_byte_and_has_no_name(tmp_path: Path) -> None:
    directory = tmp_path / "spill"
    store = SpillStore(disk=DiskTier(10 * 8192, PIECE, file := SpillFile(directory, PIECE)))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert os.fstat(file.fileno()).st_nlink == 0
    for number in range(14):
        assert store.put(bytes([number]), piece(number))
        assert list(directory.iterdir()) == []
    assert [store.get(bytes([n])) for n in range(14)] == [None] * 4 + [piece(n) for n in range(4, 14)]
    assert (store.num_lost, store.num_damaged, store.disk_bytes) == (4, 0, 10 * 8192)
    store.close()
    store.close()


@pytest.mark.parametrize("damage", ["altered", "cut"])
def test_damage_is_seen_and_counted(damage: str, tmp_path: Path) -> None:
    store = SpillStore(disk=DiskTier(10 * 8192, PIECE, file := SpillFile(tmp_path, PIECE)))
    for number in range(3):
        store.put(bytes([number]), piece(number))
    path = f"/proc/self/fd/{file.fileno()}"
    if damage == "altered":
        with open(path, "r+b") as other:  # noqa: PTH123
            other.seek(8192 + 4321)
            byte = other.read(1)
            other.seek(8192 + 4321)
            other.write(bytes([byte[0] ^ 1]))
    else:
        os.truncate(file.fileno(), 8192 + 4096)
    assert store.get(b"\0") == piece(0)
    assert store.get(b"\1") is None
    assert store.get(b"\1") is None
    assert store.num_damaged == 1
    assert b"\1" not in store
    store.close()


def test_a_full_disk_turns_spilling_off_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SpillStore(disk=DiskTier(10 * 8192, PIECE, FullAtByte(tmp_path, PIECE)))
    with caplog.at_level(logging.WARNING):
        kept = [store.put(bytes([number]), piece(number)) for number in range(6)]
    assert kept == [True] * 3 + [False] * 3
    assert not store.accepts
    assert [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()] == [
        "KV cache is no longer spilled to disk, what is preempted is computed again: writing 5000 bytes failed: "
        "[Errno 28] No space left on device"
    ]
    assert len(caplog.records) == store.num_errors == 1
    assert [store.get(bytes([n])) for n in range(4)] == [piece(0), piece(1), piece(2), None]
    store.close()


def test_a_full_tier_whose_disk_fails_still_knows_what_it_holds(tmp_path: Path) -> None:
    store = SpillStore(disk=DiskTier(3 * 8192, PIECE, file := FullAtByte(tmp_path, PIECE)))
    assert all(store.put(bytes([number]), piece(number)) for number in range(3))
    file.end = 0
    assert not store.put(b"new", piece(7))
    assert [store.get(bytes([n])) for n in range(3)] == [None, piece(1), piece(2)]
    for number in range(3):
        store.drop(bytes([number]))
    assert store.disk_bytes == 0
    store.close()


def test_host_memory_overflows_to_disk_and_is_charged(tmp_path: Path) -> None:
    ledger = Ledger(3 * 8192 - 1)
    host = HostTier(10 * 8192, PIECE, ledger=ledger)
    store = SpillStore(host=host, disk=DiskTier(2 * 8192, PIECE, SpillFile(tmp_path, PIECE)))
    for number in range(5):
        store.put(bytes([number]), piece(number))
    assert (store.host_bytes, store.disk_bytes, ledger.in_use_bytes) == (2 * 8192, 2 * 8192, 2 * 8192)
    assert [store.get(bytes([n])) for n in range(5)] == [None, piece(1), piece(2), piece(3), piece(4)]
    for number in range(5):
        store.drop(bytes([number]))
    assert (store.host_bytes, store.disk_bytes, ledger.in_use_bytes) == (0, 0, 0)
    store.close()
    assert ledger.usage() == {}


class Damaging(SpillStore):
    """Loses or damages pieces now and then."""

    choose = random.Random(3)

    def get(self, key: bytes) -> bytes | None:
        data = super().get(key)
        return None if self.choose.random() < 0.2 else data


@pytest.mark.parametrize("seed", range(16))
def test_random_traffic_with_spilling_equals_isolated_runs(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    block_tokens = choose.choice([3, 4, 8])
    executor = HistoryExecutor(
        choose.choice([12, 16, 24]), max_blocks=40, block_tokens=block_tokens,
        max_step_tokens=choose.choice([8, 64]), max_step_rows=16,
    )  # fmt: skip
    size = 8 * block_tokens
    file = FullAtByte(tmp_path, size) if seed % 4 == 3 else SpillFile(tmp_path, size)
    disk = DiskTier(choose.choice([4, 200]) * 4096, size, file)
    host = HostTier(3 * 4096, size) if choose.random() < 0.5 else None
    store = (Damaging if seed % 2 else SpillStore)(host=host, disk=disk)
    engine = make_engine(executor, context_tokens=36 if block_tokens == 3 else 48, max_queued=1000, spill_store=store)
    traffic = Traffic(engine, nan=False)
    prompts: list[list[int]] = []
    num_sent = 0
    while num_sent < 60 or engine.has_work:
        if num_sent < 60:
            traffic.add(draw_request(choose, f"r{num_sent}", prompts))
            num_sent += 1
        if traffic.accepted and choose.random() < 0.02:
            traffic.abort(choose.choice(list(traffic.accepted)))
        if choose.random() < 0.2:
            engine.resize_pool(choose.randint(1, 40))
        if choose.random() < 0.2 and len(engine.scheduler.running) > 1:
            engine.scheduler.preempt_last()
        traffic.step()
    traffic.check()
    spill = engine.spill
    assert spill is not None
    assert spill.num_spilled_blocks + spill.num_prefix_blocks > 0
    assert seed % 4 == 3 or spill.num_restored_blocks > 0
    assert not spill._wanted
    assert not any(tier._slots.num_kept for tier in (host, disk) if tier is not None), "idle prefixes alone are left"
