"""Where a plan's weights on disk lie, and how fast they will be."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openautoglm.checkpoint.packed import OFF, PackedCache, open_cache
from openautoglm.errors import ConfigError
from openautoglm.executor.disk_speed import measure_disk
from openautoglm.native import _core
from openautoglm.planner.offload import predict
from openautoglm.spec.notices import Notices
from openautoglm.spec.plan import Plan
from openautoglm.units import MIB

_MOST_PROBED_BYTES = 256 * MIB
_LEAST_PROBED_BYTES = 16 * MIB


def with_speed(plan: Plan, cache: str | None) -> Plan:
    """Return a plan that predicts its speed where layers stay on disk: disk and memory are measured, in about a second.

    Takes at most half of what the weights in memory will, and 256 MiB, for the moment. Raises `ConfigError` for a
    directory that cannot hold weights.
    """
    if plan.offload is None:
        return plan
    disk = measure_disk(_directory(plan.offload.directory, cache), num_readers=plan.offload.num_readers)
    probed_bytes = max(_LEAST_PROBED_BYTES, min(_MOST_PROBED_BYTES, plan.breakdown.weight_bytes // 2))
    memory = _core.probe_read_bandwidth(plan.num_threads, probed_bytes)
    return predict(
        plan,
        disk_bytes_per_second=disk.bytes_per_second,
        memory_bytes_per_second=memory,
        direct=disk.direct,
    )


@contextmanager
def packed_cache(plan: Plan, setting: str | None, notices: Notices) -> Iterator[PackedCache | None]:
    """Yield the cache that a load of `plan` works with; `setting` is a directory, "off" or None (the default).

    A plan with layers on disk has its own directory where one is set. With "off" they lie in a file that has no name
    once the block ends, and that goes with the process. Raises `ConfigError` for a directory that cannot be made.
    """
    if plan.offload is None:
        yield open_cache(setting, notices=notices)
        return
    directory = _directory(plan.offload.directory, setting)
    if setting != OFF:
        yield PackedCache(directory=directory, notices=notices)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        private = Path(tempfile.mkdtemp(dir=directory, prefix="offload-"))
    except OSError as error:
        raise ConfigError(
            f"weights cannot be kept on disk in {directory} ({error.strerror or error}): choose another directory with "
            "--offload-dir"
        ) from error
    try:
        yield PackedCache(directory=private, notices=notices)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _directory(wanted: str, setting: str | None) -> Path:
    """Return where weights on disk lie: where the user wants them, else where packed weights are kept."""
    if wanted == OFF:  # a directory of that name, not the cache's switch
        return Path(wanted)
    cache = open_cache(wanted or (None if setting == OFF else setting))
    if cache is None:
        raise ConfigError("there is no home directory to keep weights on disk in: choose one with --offload-dir")
    return cache.directory
