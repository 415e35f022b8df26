"""Control groups of this process, versions 1 and 2: memory and processor limits of every level above it.

A limit anywhere above a process holds for it, so each search walks from the process's own group up to the mount.
Sources: the kernel's admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst, and proc(5) for mountinfo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NO_LIMIT_BYTES = 1 << 60  # version 1 writes "no limit" as the largest page-aligned long, far above any machine


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMount:
    """A mounted hierarchy: `controllers` is empty for version 2; `mount_root` is the group shown at `directory`."""

    version: int
    controllers: tuple[str, ...]
    mount_root: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """One level's memory limit and use; `reclaimable_bytes` are file pages that the kernel drops under pressure."""

    directory: str
    version: int
    limit_bytes: int
    used_bytes: int
    reclaimable_bytes: int

    @property
    def available_bytes(self) -> int:
        """What this level still leaves to the processes below it."""
        return max(0, self.limit_bytes - self.used_bytes + min(self.reclaimable_bytes, self.used_bytes))


def parse_membership(text: str) -> dict[str, str]:
    """Parse /proc/PID/cgroup into {controller: path}; version 2 stands under the empty name."""
    membership: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                membership[controller] = parts[2]
    return membership


def parse_mounts(text: str, root: Path) -> tuple[CgroupMount, ...]:
    """Parse /proc/PID/mountinfo into the cgroup mounts, their directories below `root`."""
    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if not separator or len(fields) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        options = kind[2].split(",") if kind[0] == "cgroup" and len(kind) > 2 else []
        mounts.append(
            CgroupMount(
                version=2 if kind[0] == "cgroup2" else 1,
                controllers=tuple(option for option in options if option not in ("rw", "ro")),
                mount_root=_unescape(fields[3]),
                directory=root / _unescape(fields[4]).lstrip("/"),
            )
        )
    return tuple(mounts)


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def levels(mount: CgroupMount, path: str) -> tuple[Path, ...]:
    """Return the directories of a group and of every level above it that the mount shows, innermost first.

    A container may show only its own group as the mount's root while /proc/self/cgroup names it from the host's
    root; a path outside of the mount (another namespace) leaves the mount's own directory.
    """
    group, top = PurePosixPath(path), PurePosixPath(mount.mount_root)
    below = group.relative_to(top) if group.is_relative_to(top) and ".." not in group.parts else PurePosixPath()
    directory = mount.directory / below
    if not directory.is_dir():
        directory = mount.directory
    found = [directory]
    while found[-1] != mount.directory:
        found.append(found[-1].parent)
    return tuple(found)


def group_levels(root: Path, controller: str) -> tuple[tuple[int, Path], ...]:
    """Return (version, directory) of every level above this process that may hold limits of `controller`."""
    membership_file, mounts_file = root / "proc/self/cgroup", root / "proc/self/mountinfo"
    if not membership_file.is_file() or not mounts_file.is_file():
        return ()
    membership = parse_membership(membership_file.read_text())
    found: list[tuple[int, Path]] = []
    for mount in parse_mounts(mounts_file.read_text(), root):
        name = "" if mount.version == 2 else controller
        if name in membership and (mount.version == 2 or controller in mount.controllers):
            found.extend((mount.version, directory) for directory in levels(mount, membership[name]))
    return tuple(found)


def memory_levels(root: Path) -> tuple[CgroupMemory, ...]:
    """Return every level above this process that limits memory, version 1 and 2."""
    found = []
    for version, directory in group_levels(root, "memory"):
        level = read_memory_level(version, directory)
        if level is not None:
            found.append(level)
    return tuple(found)


def read_memory_level(version: int, directory: Path) -> CgroupMemory | None:
    """Return one group's memory limit and use; None if it has no limit, or is gone."""
    return _memory_v2(directory) if version == 2 else _memory_v1(directory)


def _memory_v2(directory: Path) -> CgroupMemory | None:
    # memory.high does not kill, but above it every allocation is throttled: it bounds a budget like memory.max.
    limits = [read_number(directory / name) for name in ("memory.max", "memory.high")]
    set_limits = [limit for limit in limits if limit is not None]
    if not set_limits:
        return None
    statistics = _read_pairs(directory / "memory.stat")
    return CgroupMemory(
        directory=str(directory),
        version=2,
        limit_bytes=min(set_limits),
        used_bytes=read_number(directory / "memory.current") or 0,
        reclaimable_bytes=statistics.get("inactive_file", 0) + statistics.get("active_file", 0),
    )


def _memory_v1(directory: Path) -> CgroupMemory | None:
    limit = read_number(directory / "memory.limit_in_bytes")
    if limit is None or limit >= NO_LIMIT_BYTES:
        return None
    statistics = _read_pairs(directory / "memory.stat")
    return CgroupMemory(
        directory=str(directory),
        version=1,
        limit_bytes=limit,
        used_bytes=read_number(directory / "memory.usage_in_bytes") or 0,
        reclaimable_bytes=statistics.get("total_inactive_file", 0) + statistics.get("total_active_file", 0),
    )


def cpu_quota(root: Path) -> float | None:
    """Return the least processor quota in cores of all levels above this process, None where there is none."""
    quotas = []
    for version, directory in group_levels(root, "cpu"):
        quota = _quota_v2(directory) if version == 2 else _quota_v1(directory)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(directory: Path) -> float | None:
    file = directory / "cpu.max"
    fields = file.read_text().split() if file.is_file() else []
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(directory: Path) -> float | None:
    quota = read_number(directory / "cpu.cfs_quota_us")
    period = read_number(directory / "cpu.cfs_period_us")
    if quota is None or not period or quota <= 0:
        return None
    return quota / period


def read_number(file: Path) -> int | None:
    """Read a file that holds one integer; None if it is absent or says "max"."""
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return None if text in ("max", "") else int(text)


def _read_pairs(file: Path) -> dict[str, int]:
    if not file.is_file():
        return {}
    pairs = (line.split() for line in file.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
