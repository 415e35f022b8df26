"""A version 2 group, as its files tell: memory.high halved and doubled again while requests go on.

No version 2 controller is needed: the files lie in a directory, and this test is the kernel that fills them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.memory.pressure import headroom_bytes
from openautoglm.probe.pressure import PressureProbe
from openautoglm.spec.pressure import MemorySignals, Rung
from tests.engine.test_ladder import BLOCK_BYTES, BUDGET, Machine, add_many, check_outputs
from tests.probe.test_cgroup import Tree

GROUP = "sys/fs/cgroup/box"
PID = 7
PAGE_CACHE_BYTES = 3 << 20
HALF_BLOCKS = 32


class GroupedMachine(Machine):
    """A machine that is looked at through the files of a group: what is fixed and every block of the pool is in use."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.tree = Tree(directory)
        self.tree.v2("/box")
        self.tree.write(f"proc/{PID}/stat", f"{PID} (serve) S 1 0 0\n")
        self.write("memory.max", BUDGET)
        self.write("memory.high", "max")
        self.write("memory.stat", f"anon 1\nactive_file {PAGE_CACHE_BYTES}\ninactive_file 0")
        self.stalled_microseconds = 0
        self.account()
        self.probe = PressureProbe(PID, root=directory, clock=self.clock)

    def write(self, name: str, value: object) -> None:
        self.tree.write(f"{GROUP}/{name}", f"{value}\n")

    def used_bytes(self) -> int:
        """The kernel's count: everything of the plan but the headroom."""
        fixed = self.loaded.fixed_bytes - headroom_bytes(BUDGET)
        return fixed + self.engine.pool.num_blocks * BLOCK_BYTES + self.hog_bytes

    def account(self) -> None:
        used = self.used_bytes()
        self.write("memory.current", used + PAGE_CACHE_BYTES)
        self.write("memory.pressure", f"some avg10=0 avg60=0 avg300=0 total={self.stalled_microseconds}")
        own = used - self.hog_bytes
        self.tree.write(f"proc/{PID}/statm", f"9999999 {own // 4096} 5 0 0 0 0\n")
        self.tree.write(f"proc/{PID}/smaps_rollup", f"Rss: {own >> 10} kB\nPss: {own >> 10} kB\nPss_File: 0 kB\n")

    def look(self) -> MemorySignals:
        self.account()
        return self.probe.sample(self.ladder.budget_bytes)


def test_high_halved_and_doubled_twenty_times_under_load(tmp_path: Path) -> None:
    machine = GroupedMachine(tmp_path)
    half = BUDGET - (machine.num_blocks - HALF_BLOCKS) * BLOCK_BYTES
    requests = add_many(machine, 40, tokens=60)
    for _ in range(20):
        machine.step()
        for limit, num_blocks in ((half, HALF_BLOCKS), (BUDGET, machine.num_blocks)):
            machine.write("memory.high", limit)
            assert machine.ladder.wants(machine.look())
            machine.tick()
            assert machine.engine.pool.num_blocks == num_blocks
            assert machine.ladder.budget_bytes == limit
            # Only now may the hard limit follow: what is in use is below it.
            assert machine.used_bytes() <= limit
            machine.write("memory.max", limit)
            machine.step()
    machine.finish()
    assert machine.engine.pool.num_live == 0
    check_outputs(machine, requests)


def test_a_hog_in_the_group_is_seen_in_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = GroupedMachine(tmp_path)
    requests = add_many(machine, 6)
    machine.finish()
    machine.hog_bytes = 40 << 20
    machine.tick()
    assert machine.ladder.rung is Rung.DROP_PREFIX
    assert any("enters drop_prefix" in line and line.endswith("/box)") for line in caplog.messages)
    assert machine.used_bytes() <= BUDGET - headroom_bytes(BUDGET)
    check_outputs(machine, requests)


@pytest.mark.parametrize(("share", "expected"), [(0.0, Rung.NONE), (0.04, Rung.NONE), (0.9, Rung.STOP_ADMISSION)])
def test_stalls_go_as_far_as_stopping_admission(tmp_path: Path, share: float, expected: Rung) -> None:
    machine = GroupedMachine(tmp_path)
    machine.tick()
    machine.stalled_microseconds += int(share * 1e6)
    machine.tick(seconds=1.0)
    assert machine.ladder.rung is expected
