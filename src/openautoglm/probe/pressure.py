"""Looks at the memory around this process again and again, cheaply: the sources of `MemorySignals`.

    what               from                                                         cost
    tree_bytes         /proc/PID/statm of the tree; now and then smaps_rollup       a read per process
    budget             tree_bytes against --memory                                  none
    machine            /proc/meminfo: MemAvailable                                  a read
    control groups     v1 usage_in_bytes, v2 memory.current, memory.stat            three reads per level
    announced          v2 memory.high                                               a read per level
    stalls             memory.pressure of the innermost group, else /proc/pressure  a read

Sources: proc(5), the kernel's admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst, accounting/psi.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from openautoglm.probe.cgroup import CgroupMemory, group_levels, read_memory_level, read_number
from openautoglm.probe.memory import parse_meminfo
from openautoglm.probe.process_memory import measure_processes, process_tree
from openautoglm.spec.pressure import MemorySignals, Room

# Proportional sizes walk the page tables, so they are taken rarely; in between, the resident size tells the change.
CALIBRATION_SECONDS = 10.0


class PressureProbe:
    """Samples the memory of the process tree under `pid` (this process by default); one thread only.

    The control groups are those of this process when the probe is made. `sample` costs some tens of microseconds, and
    every CALIBRATION_SECONDS a walk over the tree's page tables. `caller_bytes` of the tree are not the budget's: what
    a program that uses the library had taken before.
    """

    def __init__(
        self,
        pid: int | None = None,
        *,
        caller_bytes: int = 0,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller_bytes = caller_bytes
        self._pid = os.getpid() if pid is None else pid
        self._root = root
        self._clock = clock
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._levels = group_levels(root, "memory")
        self._tree: tuple[int, ...] = ()
        self._correction_bytes = 0
        self._calibrated_seconds = float("-inf")
        self._stall_file = self._find_stall_file()
        self._stalled_seconds = self._read_stalled_seconds()
        self._sampled_seconds = clock()

    def sample(self, budget_bytes: int) -> MemorySignals:
        """Return what there is now, with `budget_bytes` as the bound on the tree itself."""
        now = self._clock()
        if now - self._calibrated_seconds >= CALIBRATION_SECONDS:
            self._calibrate(now)
        tree_bytes = max(0, self._resident_bytes() + self._correction_bytes - self._caller_bytes)
        rooms = [Room(source="budget", limit_bytes=budget_bytes, left_bytes=budget_bytes - tree_bytes)]
        rooms.extend(self._machine_room())
        announced: list[int] = []
        for version, directory in self._levels:
            level = read_memory_level(version, directory)
            if level is not None:
                rooms.append(_group_room(level))
            high = read_number(directory / "memory.high") if version == 2 else None
            if high is not None:
                announced.append(high)
        return MemorySignals(
            tree_bytes=tree_bytes,
            rooms=tuple(rooms),
            stalled_share=self._stalled_share(now),
            announced_bytes=min(announced, default=None),
        )

    def _calibrate(self, now: float) -> None:
        self._tree = process_tree(self._pid, self._root)
        self._correction_bytes = measure_processes(self._tree, root=self._root).pss_bytes - self._resident_bytes()
        self._calibrated_seconds = now

    def _resident_bytes(self) -> int:
        pages = 0
        for pid in self._tree:
            try:
                pages += int((self._root / "proc" / str(pid) / "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended, and takes nothing any more
        return pages * self._page_bytes

    def _machine_room(self) -> list[Room]:
        fields = parse_meminfo((self._root / "proc/meminfo").read_text())
        if "MemTotal" not in fields or "MemAvailable" not in fields:
            return []
        return [Room(source="machine", limit_bytes=fields["MemTotal"], left_bytes=fields["MemAvailable"])]

    def _find_stall_file(self) -> Path | None:
        files = [directory / "memory.pressure" for version, directory in self._levels if version == 2]
        return next((file for file in (*files, self._root / "proc/pressure/memory") if file.is_file()), None)

    def _read_stalled_seconds(self) -> float:
        """Return the total time in which some task waited for memory; 0 where it is not counted."""
        try:
            text = self._stall_file.read_text() if self._stall_file is not None else ""
        except OSError:  # the file is there, and pressure is not accounted for
            return 0.0
        return parse_stalled_seconds(text)

    def _stalled_share(self, now: float) -> float:
        stalled, elapsed = self._read_stalled_seconds(), now - self._sampled_seconds
        share = (stalled - self._stalled_seconds) / elapsed if elapsed > 0 else 0.0
        self._stalled_seconds, self._sampled_seconds = stalled, now
        return min(max(share, 0.0), 1.0)


def parse_stalled_seconds(text: str) -> float:
    """Return "total" of the "some" line of a pressure file, in seconds; 0 if there is none."""
    for line in text.splitlines():
        name, _, fields = line.partition(" ")
        total = dict(field.partition("=")[::2] for field in fields.split()).get("total", "")
        if name == "some" and total.isdecimal():
            return int(total) / 1e6
    return 0.0


def _group_room(level: CgroupMemory) -> Room:
    used = level.used_bytes - min(level.reclaimable_bytes, level.used_bytes)
    return Room(source=level.directory, limit_bytes=level.limit_bytes, left_bytes=level.limit_bytes - used)
