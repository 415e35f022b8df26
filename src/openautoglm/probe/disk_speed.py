"""How fast the file system of the caches writes and reads: a short trial, bounded in bytes and in time."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from openautoglm.probe.file_system import existing_parent
from openautoglm.units import MIB

TRIAL_BYTES = 64 * MIB
TRIAL_SECONDS = 2.0
_PIECE_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """Bytes per second to the disk and from it; `num_bytes` were tried."""

    write_bytes_per_second: float
    read_bytes_per_second: float
    num_bytes: int


def measure_disk_speed(directory: Path) -> DiskSpeed:
    """Write a file in `directory` (or its nearest existing parent) and read it back, past the page cache.

    At most TRIAL_BYTES, and no new piece after TRIAL_SECONDS of writing or of reading. The file has no name, so that
    nothing is left behind. Raises `OSError` where nothing can be written. Peak bytes: one piece of 4 MiB.
    """
    existing = existing_parent(directory)
    piece = os.urandom(_PIECE_BYTES)
    with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
        started = time.monotonic()
        num_bytes = 0
        while num_bytes < TRIAL_BYTES and time.monotonic() - started < TRIAL_SECONDS:
            num_bytes += file.write(piece)
            os.fdatasync(file.fileno())
        write_seconds = time.monotonic() - started
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        num_read = 0
        while num_read < num_bytes and time.monotonic() - started < TRIAL_SECONDS:
            num_read += len(os.pread(file.fileno(), _PIECE_BYTES, num_read))
        read_seconds = time.monotonic() - started
    return DiskSpeed(
        write_bytes_per_second=num_bytes / max(write_seconds, 1e-9),
        read_bytes_per_second=num_read / max(read_seconds, 1e-9),
        num_bytes=num_bytes,
    )
