"""A process that takes memory in one way or another under a real watchdog, whose clock is the only thing made up.

leaking_child.py DIRECTORY WAY [SLOPE]      prints the reports' reasons, growth and first traced line as JSON
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

from openautoglm.engine.report_files import ReportFiles
from openautoglm.engine.watchdog import Accounts, Watchdog
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.probe.process_memory import private_resident_bytes
from openautoglm.spec.watchdog import WatchdogOptions
from openautoglm.units import MIB

LEDGER_BYTES = 200 * MIB  # 15 % of it are 30 MiB
LOOK_SECONDS = 15
NUM_LOOKS = 50


class Process:
    """What this process holds, and the accounts that it gives of it."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.native: list[int] = []
        self.pools: list[mmap.mmap] = []
        self.requests = Ledger(100 * MIB, domain="requests")
        self.charges: list[tuple[Reservation, bytearray]] = []

    def accounts(self) -> Accounts:
        pools = sum(len(pool) for pool in self.pools)
        return Accounts(
            private_bytes=private_resident_bytes(),
            measured={"KV pool": pools},
            charged={"requests": self.requests.in_use_bytes},
            ledger_bytes=LEDGER_BYTES,
        )

    def leak(self, _look: int) -> None:
        """3 MiB a look: 60 MiB in five minutes, in small objects."""
        self.held.extend(bytes(3000) for _ in range(1000))

    def leak_slowly(self, _look: int) -> None:
        """0.5 MiB a look: 2 MiB a minute."""
        self.held.append(b"x" * (MIB // 2))

    def leak_natively(self, _look: int) -> None:
        """Memory of the C library's allocator, of which Python knows nothing."""
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        for _ in range(60):
            block = libc.malloc(50_000)
            ctypes.memset(block, 1, 50_000)
            self.native.append(block)

    def resize_pool(self, look: int) -> None:
        """An elastic pool: written to the last byte for ten looks, given back for ten; prefixes fill it in between."""
        if look % 20 < 10:
            pool = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pool[:] = b"\1" * len(pool)
            self.pools.append(pool)
        elif self.pools:
            self.pools.pop().close()

    def serve(self, look: int) -> None:
        """Waves of requests: charged whole, of which they take a part, and give it back when they end."""
        if look % 24 < 12:
            charge = self.requests.reserve("request", 6 * MIB)
            self.charges.append((charge, bytearray(b"x" * (2 * MIB))))
        else:
            for charge, _ in self.charges:
                charge.release()
            self.charges.clear()

    def load_and_unload(self, look: int) -> None:
        """Weights that are measured come and go, with slices of a load that live for a look."""
        if look % 8 == 0:
            slice_of_load = bytearray(b"x" * (64 * MIB))
            pool = mmap.mmap(-1, len(slice_of_load), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pool[:] = slice_of_load
            self.pools.append(pool)
        elif look % 8 == 4:
            self.pools.pop().close()

    def idle(self, _look: int) -> None:
        """Nothing happens."""


def main(directory: str, way: str, *more: str) -> None:
    process = Process()
    act: Callable[[int], None] = getattr(process, way)
    now = 0.0
    slope = int(float(more[0]) * MIB) if more else None
    options = WatchdogOptions(slope_bytes_per_minute=slope, directory=directory)
    dog = Watchdog("engine", process.accounts, ReportFiles(Path(directory), "engine"), options, clock=lambda: now)
    if "trace" in more:
        dog.report(trace=True)
    found = []
    for look in range(NUM_LOOKS):
        act(look)
        report = dog.look()
        if report is not None:
            found.append({"look": look, "reason": report.reason, "file": report.file})
        now += LOOK_SECONDS
    dog.stop()
    print(json.dumps({"found": found, "counts": dog.num_reports}))


if __name__ == "__main__":
    main(*sys.argv[1:])
