"""From a plan's spill tiers to a store: checked before a load, opened after it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from openautoglm.errors import ConfigError, OutOfMemoryError
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.spill import overhead_bytes
from openautoglm.memory.spill_file import SpillFile
from openautoglm.memory.spill_store import SpillStore
from openautoglm.memory.tiers import DiskTier, HostTier
from openautoglm.probe.disk import cache_directory
from openautoglm.probe.file_system import MEMORY_FILE_SYSTEMS, existing_parent, file_system
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import format_bytes


def spill_directory(tiers: SpillTiers) -> Path:
    """Return where the disk tier's file lies."""
    return cache_directory() / "spill" if tiers.directory is None else Path(tiers.directory)


def check_spill_directory(tiers: SpillTiers) -> None:
    """Raise `ConfigError` where the disk tier cannot be, or would be no disk; makes nothing."""
    if not tiers.disk_bytes:
        if tiers.directory is not None:
            raise ConfigError("--spill-dir means nothing without --spill-disk: add a size, or leave it out")
        return
    directory = spill_directory(tiers)
    parent = existing_parent(directory)
    kind = file_system(parent)
    if kind in MEMORY_FILE_SYSTEMS:
        raise ConfigError(
            f"KV cache cannot be spilled to {directory}: that is {kind}, whose files are memory. Choose a directory on "
            "a disk with --spill-dir, or have --spill-memory instead"
        )
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"KV cache cannot be spilled to {directory}: {parent} is no directory that can be written to")
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < tiers.disk_bytes:
        raise ConfigError(
            f"--spill-disk {format_bytes(tiers.disk_bytes)} are more than the {format_bytes(free_bytes)} that are free "
            f"in {directory}: ask for less, or choose another directory with --spill-dir"
        )


def open_spill(tiers: SpillTiers, block_bytes: int, ledger: Ledger, notices: Notices) -> SpillStore | None:
    """Return the store of a plan's tiers, None without any; its host memory is charged to `ledger` as it is taken.

    Raises `ConfigError` where the file cannot be made, `OutOfMemoryError` where the ledger or the system refuses.
    """
    if not tiers:
        return None
    overhead = ledger.reserve("KV spill: buffers and index", overhead_bytes(tiers, block_bytes))
    file: SpillFile | None = None
    try:
        if tiers.disk_bytes:
            file = _open_file(spill_directory(tiers), block_bytes, notices)
        host = HostTier(tiers.memory_bytes, block_bytes, ledger=ledger) if tiers.memory_bytes else None
    except BaseException as error:
        if file is not None:
            file.close()
        overhead.release()
        if isinstance(error, OSError):
            raise OutOfMemoryError(f"the system has no room for spilled KV cache: {error}") from error
        raise
    return SpillStore(host=host, disk=None if file is None else DiskTier(tiers.disk_bytes, block_bytes, file))


def _open_file(directory: Path, block_bytes: int, notices: Notices) -> SpillFile:
    try:
        file = SpillFile(directory, block_bytes)
    except OSError as error:
        raise ConfigError(
            f"KV cache cannot be spilled to {directory} ({error.strerror or error}): choose another directory with "
            "--spill-dir"
        ) from error
    try:
        if not file.direct:
            message = (
                f"{directory} has no direct I/O: spilled KV cache goes through the page cache, and is dropped there"
            )
            notices.add(NoticeCode.SPILL_BUFFERED, message)
    except BaseException:
        file.close()
        raise
    return file
