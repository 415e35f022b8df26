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
from openautoglm.errors import ConfigError
from openautoglm.native import _core
from openautoglm.units import MIB

PROBE_BYTES = 256 * MIB
LEAST_BYTES = 16 * MIB
WRITE_SECONDS = 1.0  # at most
READ_SECONDS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """Bytes per second of several readers at once; `direct`: past the page cache."""

    bytes_per_second: float
    direct: bool


def measure_disk(directory: Path, *, num_readers: int) -> DiskSpeed:
    """Read a packed file of `directory`, or one that is written for it, for less than half a second.

    A directory that is not there yet stands on the disk of its nearest parent. Takes 64 MiB, and disk space of 256 MiB,
    for the moment; writing that takes about a second at most. Raises `ConfigError` where nothing can be written.
    """
    existing = directory.absolute()
    while not existing.is_dir():
        existing = existing.parent
    try:
        with _some_file(existing) as path:
            return _read(path, num_readers)
    except OSError as error:
        raise ConfigError(
            f"the disk of {directory} cannot be measured ({error.strerror or error}): choose another --offload-dir"
        ) from error


@contextmanager
def _some_file(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.glob("*.packed")):
        if path.is_file() and path.stat().st_size >= PROBE_BYTES and os.access(path, os.R_OK):
            yield path
            return
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".speed-", suffix=".probe") as file:
        noise = os.urandom(4 * MIB)
        deadline = time.perf_counter() + WRITE_SECONDS
        written_bytes = 0
        while written_bytes < PROBE_BYTES and (written_bytes < LEAST_BYTES or time.perf_counter() < deadline):
            written_bytes += file.write(noise)
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(file.name)


def _read(path: Path, num_readers: int) -> DiskSpeed:
    descriptor, direct = open_direct(path)
    num_bytes = os.fstat(descriptor).st_size
    try:
        speed = _core.probe_stream(descriptor, direct, str(path), num_readers, num_bytes, READ_SECONDS)
    except _core.WeightStreamError as error:
        raise OSError(str(error)) from error
    return DiskSpeed(bytes_per_second=speed, direct=direct)
