"""What a process does, seen from outside: whether it is stopped, its processor time, what it reads from disks.

Source: proc(5), /proc/PID/stat and /proc/PID/io.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Stopped by a signal, and by a tracer.
_STOPPED_STATES = ("T", "t")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessActivity:
    """`cpu_seconds` of all threads since the start, `disk_bytes` read from disks, 0 where the system does not tell."""

    stopped: bool
    cpu_seconds: float
    disk_bytes: int


def process_activity(pid: int, root: Path = Path("/")) -> ProcessActivity | None:
    """Return what the process has done so far; None for one that is gone, or that cannot be looked at now."""
    directory = root / "proc" / str(pid)
    try:
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Fields 3, 14 and 15: state, utime and stime.
    cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    return ProcessActivity(
        stopped=fields[0] in _STOPPED_STATES, cpu_seconds=cpu_seconds, disk_bytes=_disk_bytes(directory)
    )


def _disk_bytes(directory: Path) -> int:
    try:
        lines = (directory / "io").read_text().splitlines()
    except OSError:  # a kernel without task accounting, or a sandbox that hides it
        return 0
    return sum(int(line.partition(":")[2]) for line in lines if line.startswith("read_bytes:"))
