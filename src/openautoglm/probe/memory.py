"""Host memory: what there is, what is free now, and what control groups leave of it."""

from __future__ import annotations

import os
from pathlib import Path

from openautoglm.errors import ConfigError
from openautoglm.probe.cgroup import memory_levels
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.machine import MemorySpec
from openautoglm.units import MIB

INTERPRETER_BYTES = 64 * MIB  # what an interpreter with this package loaded holds at most


def parse_meminfo(text: str) -> dict[str, int]:
    """Parse /proc/meminfo into bytes per field."""
    fields: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        parts = value.split()
        if parts and parts[0].isdigit():
            fields[key.strip()] = int(parts[0]) * (1024 if parts[1:] == ["kB"] else 1)
    return fields


def parse_huge_page_mode(text: str) -> str:
    """Return the mode in brackets of .../transparent_hugepage/enabled: "always", "madvise" or "never"."""
    for word in text.split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return "never"


def probe_memory(root: Path = Path("/")) -> MemorySpec:
    """Describe host memory; `available_bytes` and `limit_bytes` are the least of machine and control groups.

    What this process and its children already hold counts as available to them up to INTERPRETER_BYTES, because a
    budget covers their memory too; more than that is a host program's data, which stays taken.
    Raises `ConfigError` where /proc/meminfo cannot be understood.
    """
    file = root / "proc/meminfo"
    fields = parse_meminfo(file.read_text()) if file.is_file() else {}
    if "MemTotal" not in fields:
        raise ConfigError(f"{file} gives no MemTotal, so memory cannot be measured: mount /proc, or run on Linux")
    total = fields["MemTotal"]
    # MemAvailable exists since Linux 3.14; before, free pages and page cache are the closest figure.
    available = fields.get("MemAvailable", fields.get("MemFree", 0) + fields.get("Cached", 0))
    levels = memory_levels(root)
    limit = min([total, *(level.limit_bytes for level in levels)])
    own = measure_process_memory(root=root)
    own_bytes = min(own.anonymous_bytes + own.shared_bytes, INTERPRETER_BYTES)
    mode = root / "sys/kernel/mm/transparent_hugepage/enabled"
    return MemorySpec(
        total_bytes=total,
        available_bytes=min(limit, own_bytes + min([available, *(level.available_bytes for level in levels)])),
        limit_bytes=limit,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        transparent_huge_pages=parse_huge_page_mode(mode.read_text()) if mode.is_file() else "never",
        swap_bytes=fields.get("SwapTotal", 0),
    )
