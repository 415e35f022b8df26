"""What kind of file system holds a path."""

from __future__ import annotations

import os
from pathlib import Path

# File systems whose files are memory.
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs")


def existing_parent(path: Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def file_system(path: Path, *, mounts_file: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system of a path that exists, such as "ext4"; "" where the kernel does not say.

    Source: proc(5), mountinfo: the third field is the device's numbers, the type follows " - ". File systems that give
    their files other devices than their mount (btrfs) are not found.
    """
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    if not mounts_file.is_file():
        return ""
    for line in mounts_file.read_text(encoding="utf-8", errors="replace").splitlines():
        head, separator, tail = line.partition(" - ")
        fields = head.split()
        if separator and len(fields) > 2 and fields[2] == wanted:
            return tail.split()[0]
    return ""
