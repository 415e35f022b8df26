"""The ladder's rung between pausing and computing again: blocks leave memory for the disk, and come back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from openautoglm.engine.explain import explain_text
from openautoglm.memory.pressure import headroom_bytes
from openautoglm.memory.spill_file import SpillFile
from openautoglm.memory.spill_store import SpillStore
from openautoglm.memory.tiers import DiskTier, HostTier
from openautoglm.spec.pressure import Rung
from openautoglm.units import MIB
from tests.engine.history_executor import HistoryExecutor
from tests.engine.test_ladder import BUDGET, Machine, add_many, check_outputs

PIECE = HistoryExecutor(1).layout().groups[0].block_tokens * 8  # a token and its position, 4 bytes each


def tiers(directory: Path | None, *, host: bool) -> SpillStore:
    return SpillStore(
        host=HostTier(64 * 4096, PIECE) if host else None,
        disk=None if directory is None else DiskTier(4 * MIB, PIECE, SpillFile(directory, PIECE)),
    )


def squeezed(store: SpillStore) -> tuple[Machine, list]:
    """A machine that has gone down the ladder until enough was given back, at the moment after."""
    machine = Machine(spill_store=store)
    requests = add_many(machine, 12, tokens=60)
    for _ in range(8):
        machine.step()
    machine.hog_bytes = 60 * MIB
    machine.tick()
    return machine, requests


@pytest.mark.parametrize("host", [False, True])
def test_with_a_disk_the_ladder_stops_at_spilling(host: bool, tmp_path: Path) -> None:
    store = tiers(tmp_path, host=host)
    machine, requests = squeezed(store)
    machine.hog_bytes = headroom_bytes(BUDGET) + 20 * MIB
    machine.tick()
    assert machine.ladder.rung is Rung.SPILL
    assert (machine.ladder.transitions[Rung.SPILL], machine.ladder.transitions[Rung.PREEMPT]) == (1, 0)
    status = machine.engine.status()
    assert status.num_spills == status.num_preemptions == 11
    assert status.spill is not None
    assert (status.spill.memory_bytes, store.host_bytes) == (0, 0)
    assert status.spill.disk_bytes > 0
    machine.hog_bytes = 0
    while machine.ladder.rung is not Rung.NONE:
        machine.tick()
    machine.finish()
    check_outputs(machine, requests)
    status = machine.engine.status()
    assert status.spill is not None
    assert status.spill.restored_blocks > 0
    records = [machine.engine.explain(one.request_id) for one in requests]
    spilled = [record for record in records if record is not None and record.restored_blocks]
    assert spilled
    for record in spilled:
        assert "spill" in record.rungs
        (choice,) = record.choices
        assert choice.spilled_seconds > 0
        text = explain_text(record)
        assert f"{record.spilled_blocks} blocks left memory, {record.restored_blocks} came back" in text
        assert f"spilled {choice.spilled_seconds:.3f} s" in text
    assert store.accepts
    machine.engine.close()


def test_without_a_disk_host_memory_is_given_up_and_choices_are_computed_again() -> None:
    store = tiers(None, host=True)
    machine, requests = squeezed(store)
    for number in range(10):
        store.put(bytes([number]), bytes(PIECE))
    machine.hog_bytes = headroom_bytes(BUDGET) + 60 * MIB
    machine.tick()
    assert store.host_bytes == 0
    assert not store.accepts
    assert store.num_lost >= 10
    status = machine.engine.status()
    assert status.num_preemptions == 11
    assert machine.ladder.transitions[Rung.PREEMPT] == 1
    machine.hog_bytes = 0
    while machine.ladder.rung is not Rung.NONE:
        machine.tick()
    assert store.accepts
    machine.finish()
    check_outputs(machine, requests)
    assert machine.engine.status().recomputed_tokens > 0
    machine.engine.close()


def test_blocks_that_went_to_host_memory_gave_nothing_back() -> None:
    store = tiers(None, host=True)
    machine = Machine(spill_store=store)
    add_many(machine, 12, tokens=60)
    for _ in range(8):
        machine.step()
    for _ in range(8):
        machine.engine.scheduler.preempt_last()
    num_blocks = machine.engine.pool.num_blocks
    given_bytes = machine.ladder._compact(64 * MIB)
    assert store.host_bytes > 0
    assert given_bytes == (num_blocks - machine.engine.pool.num_blocks) * MIB - store.host_bytes
    machine.engine.close()


@pytest.mark.parametrize("seed", range(8))
def test_random_hogs_with_spilling_change_no_token(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    store = tiers(tmp_path if seed % 4 else None, host=seed % 2 == 0)
    machine = Machine(num_blocks=choose.choice([24, 64]), spill_store=store)
    requests = add_many(machine, 24, tokens=choose.choice([30, 90]))
    for _ in range(150):
        if choose.random() < 0.2:
            machine.hog_bytes = choose.choice([0, 20, 40, 60, 120]) * MIB
        machine.tick(choose.choice([0.02, 0.1, 1.5]))
        machine.step()
    machine.hog_bytes = 0
    while machine.ladder.rung is not Rung.NONE:
        machine.tick()
    machine.finish()
    check_outputs(machine, requests)
    kept = [tier for tier in (store._host, store._disk) if tier is not None and tier._slots.num_kept]
    assert not kept, "idle prefixes alone are left"
    machine.engine.close()
