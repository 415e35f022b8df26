"""How fast a directory's disk can be read past the page cache: a short, bounded measurement."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openautoglm.checkpoint.direct import open_direct
from openautoglm.native import _core
from openautoglm.probe.file_system import existing_parent
from openautoglm.units import MIB

PROBE_BYTES = 256 * MIB
LEAST_BYTES = 16 * MIB
WRITE_SECONDS = 1.0  # at most
READ_SECONDS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """Bytes per second of several readers at once; `direct`: past the page cache.

    `write_bytes_per_second` is of one writer that waits for the disk, None where nothing was written.
    """

    bytes_per_second: float
    direct: bool
    write_bytes_per_second: float | None


def measure_disk(directory: Path, *, num_readers: int, write: bool) -> DiskSpeed:
    """Read a packed file of `directory`, or one that is written for it, for less than half a second.

    A directory that is not there yet stands on the disk of its nearest parent. Takes 64 MiB, and disk space of 256 MiB,
    for the moment; writing that takes about a second at most, and is measured too (with `write`, in any case). The file
    has no name, so that nothing of it is left whatever happens. Raises `OSError` where nothing can be written.
    """
    with _some_file(existing_parent(directory), write=write) as (path, write_bytes_per_second):
        read_bytes_per_second, direct = _read(path, num_readers)
    return DiskSpeed(
        bytes_per_second=read_bytes_per_second, direct=direct, write_bytes_per_second=write_bytes_per_second
    )


@contextmanager
def _some_file(directory: Path, *, write: bool) -> Iterator[tuple[Path, float | None]]:
    for path in () if write else sorted(directory.glob("*.packed")):
        if path.is_file() and path.stat().st_size >= PROBE_BYTES and os.access(path, os.R_OK):
            yield path, None
            return
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        noise = os.urandom(4 * MIB)
        begun = time.perf_counter()
        written_bytes = 0
        while written_bytes < PROBE_BYTES and (
            written_bytes < LEAST_BYTES or time.perf_counter() < begun + WRITE_SECONDS
        ):
            written_bytes += file.write(noise)
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(f"/proc/self/fd/{file.fileno()}"), written_bytes / (time.perf_counter() - begun)


def _read(path: Path, num_readers: int) -> tuple[float, bool]:
    """Return bytes per second, and whether they go past the page cache."""
    descriptor, direct = open_direct(path)
    num_bytes = os.fstat(descriptor).st_size
    try:
        speed = _core.probe_stream(descriptor, direct, str(path), num_readers, num_bytes, READ_SECONDS)
    except _core.WeightStreamError as error:
        raise OSError(str(error)) from error
    return speed, direct
