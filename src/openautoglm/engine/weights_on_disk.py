"""Where a plan's weights on disk lie, and how fast they will be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from openautoglm.checkpoint.packed import OFF, SPARE_DISK_BYTES, PackedCache, open_cache
from openautoglm.checkpoint.private_directory import private_directory
from openautoglm.errors import ConfigError
from openautoglm.executor.disk_speed import measure_disk
from openautoglm.native import _core
from openautoglm.planner.offload import predict
from openautoglm.probe.disk import probe_disk
from openautoglm.spec.goal import Goal
from openautoglm.spec.notices import Notices
from openautoglm.spec.offload import DiskRoom
from openautoglm.spec.plan import Plan
from openautoglm.units import MIB

_PRIVATE_PREFIX = "offload-"
_MOST_PROBED_BYTES = 256 * MIB
_LEAST_PROBED_BYTES = 16 * MIB


def disk_room(goal: Goal, cache: str | None) -> DiskRoom | None:
    """Return what the disk can hold that layers would stay on; None where no directory for them is known or in reach.

    Raises `ConfigError` for a directory below the home of an unknown user.
    """
    try:
        directory = _directory(goal.offload_directory or "", cache)
        free_bytes = probe_disk(directory).free_bytes - SPARE_DISK_BYTES
    except (_NoHomeError, OSError):
        return None  # a load that needs it says why it cannot be had
    stored = frozenset[int]() if cache == OFF else PackedCache(directory=directory).file_sizes()
    return DiskRoom(directory=str(directory), free_bytes=max(0, free_bytes), file_sizes=stored)


def with_speed(plan: Plan, cache: str | None) -> Plan:
    """Return a plan that predicts its speed where layers stay on disk: disk and memory are measured, in two seconds.

    Takes at most half of what the weights in memory will, and 256 MiB, for the moment. Raises `ConfigError` for a
    directory that cannot hold weights.
    """
    if plan.offload is None:
        return plan
    directory = _directory(plan.offload.directory, cache)
    file_bytes = plan.offload.file_bytes
    stands = cache != OFF and file_bytes in PackedCache(directory=directory).file_sizes()
    try:
        disk = measure_disk(directory, num_readers=plan.offload.num_readers, write=not stands)
    except OSError as error:
        raise ConfigError(
            f"the disk of {directory} cannot be measured ({error.strerror or error}): choose another --offload-dir"
        ) from error
    probed_bytes = max(_LEAST_PROBED_BYTES, min(_MOST_PROBED_BYTES, plan.breakdown.weight_bytes // 2))
    memory = _core.probe_read_bandwidth(plan.num_threads, probed_bytes)
    return predict(
        plan,
        disk_bytes_per_second=disk.bytes_per_second,
        memory_bytes_per_second=memory,
        direct=disk.direct,
        write_seconds=0.0 if disk.write_bytes_per_second is None else file_bytes / disk.write_bytes_per_second,
    )


@contextmanager
def packed_cache(plan: Plan, setting: str | None, notices: Notices) -> Iterator[PackedCache | None]:
    """Yield the cache that a load of `plan` works with; `setting` is a directory, "off" or None (the default).

    A plan with layers on disk has its own directory where one is set. With "off" they lie in a file that has no name
    once the block ends, and that goes with the process; what a process left that was killed before is removed. Raises
    `ConfigError` for a directory that cannot be made.
    """
    if plan.offload is None:
        yield open_cache(setting, notices=notices)
        return
    directory = _directory(plan.offload.directory, setting)
    if setting != OFF:
        yield PackedCache(directory=directory, notices=notices)
        return
    with ExitStack() as stack:
        try:
            private = stack.enter_context(private_directory(directory, _PRIVATE_PREFIX))
        except OSError as error:
            raise ConfigError(
                f"weights cannot be kept on disk in {directory} ({error.strerror or error}): choose another directory "
                "with --offload-dir"
            ) from error
        yield PackedCache(directory=private, notices=notices)


def _directory(wanted: str, setting: str | None) -> Path:
    """Return where weights on disk lie: where the user wants them, else where packed weights are kept."""
    if wanted == OFF:  # a directory of that name, not the cache's switch
        return Path(wanted)
    cache = open_cache(wanted or (None if setting == OFF else setting))
    if cache is None:
        raise _NoHomeError("there is no home directory to keep weights on disk in: choose one with --offload-dir")
    return cache.directory


class _NoHomeError(ConfigError):
    """Nothing says where weights on disk should lie."""
