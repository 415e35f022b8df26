"""Measures read bandwidth by threads and page size: the bound of everything that a single token computes.

    python benchmarks/micro/bandwidth.py [--bytes 1GiB] [--threads 1 2] [--rounds 5]

Each figure is the best pass of several probes over fresh memory, each thread over its own part; the probes of all cases
take turns. `granted` says how much the system really backs with 2 MB pages: where that is not all, that column is none.
Memory: --bytes once, and 2 MB.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from pathlib import Path

from openautoglm.native import _core
from openautoglm.units import MIB, parse_bytes

PASSES = 3


def huge_bytes() -> int:
    """Return the bytes of this process that stand on 2 MB pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("AnonHugePages:"))


def granted_share(num_bytes: int) -> float:
    """Return how much of the memory of a probe stands on 2 MB pages; its speed, disturbed by looking, is not used."""
    before, most = huge_bytes(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, huge_bytes() - before)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _core.probe_read_bandwidth(1, num_bytes, True, PASSES)
    finally:
        done.set()
        watcher.join()
    return most / num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=1024 * MIB, help="memory that is read (1GiB)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="probes of each case (5)")
    arguments = parser.parse_args()
    cases = list(itertools.product(arguments.threads, (False, True)))
    best = dict.fromkeys(cases, 0.0)
    for _ in range(arguments.rounds):
        for threads, huge in cases:
            speed = _core.probe_read_bandwidth(threads, arguments.bytes, huge, PASSES)
            best[threads, huge] = max(best[threads, huge], speed)
    print(
        f"{arguments.bytes / MIB:.0f} MiB, best of {arguments.rounds} x {PASSES} passes; "
        f"2 MB pages granted: {granted_share(arguments.bytes):.0%}"
    )
    print(f"{'threads':>7}{'4 KB pages':>15}{'2 MB pages':>15}{'gain':>8}")
    for threads in arguments.threads:
        small, large = best[threads, False], best[threads, True]
        print(f"{threads:>7}{small / 1e9:>10.1f} GB/s{large / 1e9:>10.1f} GB/s{large / small - 1:>+8.0%}")


if __name__ == "__main__":
    main()
