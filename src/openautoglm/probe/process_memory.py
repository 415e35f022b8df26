"""What a process tree takes: proportional set size, so that pages shared within the tree count once.

Source: proc(5), /proc/PID/smaps_rollup (Linux 4.14 and later) and /proc/PID/status.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Memory of a process tree in bytes: pss = anonymous + shared (shm, memfd) + file, each proportionally."""

    pss_bytes: int
    anonymous_bytes: int
    shared_bytes: int
    file_bytes: int
    rss_bytes: int
    num_processes: int


def parse_fields(text: str) -> dict[str, int]:
    """Parse "Name:   123 kB" lines (smaps_rollup, status) into bytes, summing repeated names (smaps)."""
    fields: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        parts = value.split()
        if len(parts) == 2 and parts[1] == "kB" and parts[0].isdigit():
            fields[key] = fields.get(key, 0) + int(parts[0]) * 1024
    return fields


def parse_parent(stat_text: str) -> int:
    """Return the parent's id from /proc/PID/stat; the name field may hold spaces and parentheses."""
    return int(stat_text.rpartition(")")[2].split()[1])


def process_tree(pid: int, root: Path = Path("/")) -> tuple[int, ...]:
    """Return `pid` and all of its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in (root / "proc").iterdir():
        if entry.name.isdigit():
            text = _read(entry / "stat")
            if text:
                children.setdefault(parse_parent(text), []).append(int(entry.name))
    tree = [pid]
    for process in tree:
        tree.extend(children.get(process, ()))
    return tuple(tree)


def measure_process_memory(
    pid: int | None = None, *, descendants: bool = True, root: Path = Path("/")
) -> ProcessMemory:
    """Measure a process (this one by default) and its descendants; processes that end meanwhile count nothing."""
    top = os.getpid() if pid is None else pid
    return measure_processes(process_tree(top, root) if descendants else (top,), root=root)


def measure_processes(pids: Sequence[int], *, root: Path = Path("/")) -> ProcessMemory:
    """Measure these processes; those that have ended count nothing."""
    totals = dict.fromkeys(("pss", "anonymous", "shared", "file", "rss"), 0)
    num_processes = 0
    for pid in pids:
        measured = _measure_one(root / "proc" / str(pid))
        if measured is not None:
            num_processes += 1
            for key, value in measured.items():
                totals[key] += value
    return ProcessMemory(
        pss_bytes=totals["pss"],
        anonymous_bytes=totals["anonymous"],
        shared_bytes=totals["shared"],
        file_bytes=totals["file"],
        rss_bytes=totals["rss"],
        num_processes=num_processes,
    )


def private_resident_bytes(*, root: Path = Path("/")) -> int:
    """Return the anonymous and shared memory of this process alone: two numbers of the kernel's, no page walk.

    The kernel keeps them per processor and adds them up when it gets round to it, so they may be some MiB off.
    """
    fields = parse_fields(_read(root / "proc" / "self" / "status") or "")
    return fields.get("RssAnon", 0) + fields.get("RssShmem", 0)


def peak_resident_bytes(pid: int | None = None, *, root: Path = Path("/")) -> int:
    """Return the largest resident set that one process ever had (VmHWM); 0 if it is gone."""
    text = _read(root / "proc" / str(os.getpid() if pid is None else pid) / "status")
    return parse_fields(text or "").get("VmHWM", 0)


def reset_peak_resident(*, root: Path = Path("/")) -> None:
    """Let this process's VmHWM start again from what is resident now (proc(5), clear_refs)."""
    (root / "proc" / "self" / "clear_refs").write_text("5")


def _measure_one(directory: Path) -> dict[str, int] | None:
    text = _read(directory / "smaps_rollup")
    if text:
        fields = parse_fields(text)
        pss, file = fields.get("Pss", 0), fields.get("Pss_File")
        if file is None:  # before Linux 5.4: no split of the proportional size; file pages are what is left
            anonymous = min(pss, fields.get("Anonymous", 0))
            return {"pss": pss, "anonymous": anonymous, "shared": 0, "file": pss - anonymous, "rss": fields["Rss"]}
        return {
            "pss": pss,
            "anonymous": fields.get("Pss_Anon", 0),
            "shared": fields.get("Pss_Shmem", 0),
            "file": file,
            "rss": fields.get("Rss", 0),
        }
    # Another user's process: its resident sizes are readable and an upper bound of its proportional ones.
    status = _read(directory / "status")
    if not status:
        return None
    fields = parse_fields(status)
    anonymous, shared, file = (fields.get(key, 0) for key in ("RssAnon", "RssShmem", "RssFile"))
    total = anonymous + shared + file
    return {"pss": total, "anonymous": anonymous, "shared": shared, "file": file, "rss": total}


def _read(file: Path) -> str | None:
    """Read a file of /proc; None if the process is gone or the file is not readable by this user."""
    try:
        return file.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
