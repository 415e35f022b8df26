"""The file system that holds caches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from openautoglm.probe.file_system import existing_parent
from openautoglm.spec.machine import DiskSpec


def cache_directory() -> Path:
    """Return where caches of this package live: $XDG_CACHE_HOME/openautoglm, else ~/.cache/openautoglm."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "openautoglm"


def probe_disk(path: Path | None = None) -> DiskSpec:
    """Describe the file system of `path` (the cache directory by default), or of its nearest existing parent."""
    wanted = cache_directory() if path is None else path
    existing = existing_parent(wanted)
    usage = shutil.disk_usage(existing)
    return DiskSpec(path=str(wanted), free_bytes=usage.free, total_bytes=usage.total)
