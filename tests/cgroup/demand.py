"""Samples what a memory cgroup demands: everything charged to it but page cache that no process has mapped.

Run as a program beside what it watches, so that it gets its turn: `demand.py GROUP SECONDS_BETWEEN`, until its input
ends; then it writes JSON. In version 1 and 2 the usage holds anonymous, shared and kernel memory and page cache.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path


def read_demand(group: Path) -> int:
    """Return the bytes that the kernel could not simply drop, with mapped file pages counted as in use."""
    v1 = (group / "memory.usage_in_bytes").exists()
    used = int((group / ("memory.usage_in_bytes" if v1 else "memory.current")).read_text())
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    fields = {name: int(value) for name, value in pairs}
    # Both count shared memory (tmpfs, memfd) as cache; it cannot be dropped.
    cache, mapped, shared = (
        (fields["total_cache"], fields["total_mapped_file"], fields.get("total_shmem", 0))
        if v1
        else (fields["file"], fields["file_mapped"], fields["shmem"])
    )
    return used - max(0, cache - max(mapped, shared))


def main() -> None:
    group, pause = Path(sys.argv[1]), float(sys.argv[2])
    most, count, longest, last = 0, 0, 0.0, time.monotonic()
    while not select.select([sys.stdin], [], [], pause)[0]:
        most, count = max(most, read_demand(group)), count + 1
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    json.dump({"demand_bytes": most, "num_samples": count, "longest_pause_seconds": longest}, sys.stdout)


if __name__ == "__main__":
    main()
