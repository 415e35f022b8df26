"""Looks at memory: fake trees of both cgroup versions, and this very machine."""

import os
from pathlib import Path

import numpy as np
import pytest

from openautoglm.probe.pressure import CALIBRATION_SECONDS, PressureProbe, parse_stalled_seconds
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.pressure import Room
from openautoglm.units import GIB, MIB
from tests.probe.test_cgroup import Tree

PAGE = os.sysconf("SC_PAGE_SIZE")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    process(tree, 7, parent=1, resident=200 * MIB, pss=180 * MIB)
    process(tree, 8, parent=7, resident=50 * MIB, pss=30 * MIB)
    process(tree, 9, parent=1, resident=900 * MIB, pss=900 * MIB)
    return tree


def process(tree: Tree, pid: int, *, parent: int, resident: int, pss: int) -> None:
    tree.write(f"proc/{pid}/stat", f"{pid} (a b) S {parent} 0 0\n")
    tree.write(f"proc/{pid}/statm", f"999999 {resident // PAGE} 5 0 0 0 0\n")
    tree.write(f"proc/{pid}/smaps_rollup", f"Rss: {resident >> 10} kB\nPss: {pss >> 10} kB\nPss_File: 0 kB\n")


def test_version_1_group_machine_and_budget(tree: Tree) -> None:
    tree.v1("/box")
    group = "sys/fs/cgroup/memory/box"
    tree.write(f"{group}/memory.limit_in_bytes", f"{GIB}\n")
    tree.write(f"{group}/memory.usage_in_bytes", f"{700 * MIB}\n")
    tree.write(f"{group}/memory.stat", f"total_inactive_file {60 * MIB}\ntotal_active_file {40 * MIB}\n")
    signals = PressureProbe(7, root=tree.root).sample(512 * MIB)
    assert signals.tree_bytes == 210 * MIB
    assert signals.announced_bytes is None
    assert signals.rooms == (
        Room(source="budget", limit_bytes=512 * MIB, left_bytes=302 * MIB),
        Room(source="machine", limit_bytes=16 * GIB, left_bytes=8 * GIB),
        Room(source=str(tree.root / group), limit_bytes=GIB, left_bytes=GIB - 600 * MIB),
    )


def test_version_2_high_is_a_bound_and_an_announcement(tree: Tree) -> None:
    tree.v2("/a/b")
    tree.write("sys/fs/cgroup/a/memory.max", f"{4 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{GIB}\n")
    tree.write("sys/fs/cgroup/a/b/memory.max", "max\n")
    tree.write("sys/fs/cgroup/a/b/memory.high", f"{2 * GIB}\n")
    tree.write("sys/fs/cgroup/a/b/memory.current", f"{GIB // 2}\n")
    probe = PressureProbe(7, root=tree.root)
    signals = probe.sample(GIB)
    assert signals.announced_bytes == 2 * GIB
    assert {room.limit_bytes: room.left_bytes for room in signals.rooms[2:]} == {
        4 * GIB: 3 * GIB,
        2 * GIB: 2 * GIB - GIB // 2,
    }
    tree.write("sys/fs/cgroup/a/b/memory.high", "max\n")
    assert probe.sample(GIB).announced_bytes is None


def test_between_calibrations_the_resident_size_tells_the_change(tree: Tree) -> None:
    tree.v2("/")
    clock = Clock()
    probe = PressureProbe(7, root=tree.root, clock=clock)
    assert probe.sample(GIB).tree_bytes == 210 * MIB
    process(tree, 7, parent=1, resident=300 * MIB, pss=0)
    process(tree, 10, parent=7, resident=80 * MIB, pss=80 * MIB)
    assert probe.sample(GIB).tree_bytes == 310 * MIB
    process(tree, 7, parent=1, resident=300 * MIB, pss=290 * MIB)
    clock.now += CALIBRATION_SECONDS
    assert probe.sample(GIB).tree_bytes == 400 * MIB


def test_stalls_are_the_share_since_the_look_before(tree: Tree) -> None:
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.pressure", stall(1_000_000))
    tree.write("proc/pressure/memory", stall(77_000_000))
    clock = Clock()
    probe = PressureProbe(7, root=tree.root, clock=clock)
    clock.now += 2
    tree.write("sys/fs/cgroup/a/memory.pressure", stall(1_500_000))
    assert probe.sample(GIB).stalled_share == pytest.approx(0.25)
    clock.now += 1
    assert probe.sample(GIB).stalled_share == 0


def test_without_a_group_of_its_own_the_machine_tells_of_stalls(tree: Tree) -> None:
    tree.v1("/box")
    tree.write("proc/pressure/memory", stall(0))
    clock = Clock()
    probe = PressureProbe(7, root=tree.root, clock=clock)
    clock.now += 1
    tree.write("proc/pressure/memory", stall(400_000))
    assert probe.sample(GIB).stalled_share == pytest.approx(0.4)


def stall(microseconds: int) -> str:
    full = "full avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    return f"some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}\n{full}"


@pytest.mark.parametrize("text", ["", "some", "some total=x", "some total=", "full avg10=1 total=9000000\n", "\n\n"])
def test_files_that_say_nothing_are_no_stalls(text: str) -> None:
    assert parse_stalled_seconds(text) == 0


def test_this_machine() -> None:
    clock = Clock()
    probe = PressureProbe(clock=clock)
    before = probe.sample(64 * GIB)
    assert {room.source for room in before.rooms} >= {"budget", "machine"}
    measured = measure_process_memory().pss_bytes
    assert abs(before.tree_bytes - measured) < 16 * MIB
    taken = np.ones(96 * MIB, dtype=np.uint8)
    grown = probe.sample(64 * GIB).tree_bytes - before.tree_bytes
    assert abs(grown - taken.nbytes) < 8 * MIB
    del taken
    assert probe.sample(64 * GIB).tree_bytes - before.tree_bytes < 8 * MIB
