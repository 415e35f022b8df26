"""`SpillStore`: pieces of bytes under keys, in host memory, on disk or both, each checked when it comes back.

put ──> host ──oldest, when full──> disk ──oldest, when full──> lost        a tier that is not there is passed by
get <───┴───────────────────────────┘      None: lost or damaged, and the caller computes it again

Idle pieces are kept where there is room beside the others, whose place they never take, and leave before them.
"""

from __future__ import annotations

import zlib

from openautoglm.log import get_logger
from openautoglm.memory.tiers import DiskTier, HostTier

_log = get_logger(__name__)


class SpillStore:
    """Never fails: what cannot be kept is lost, and counted. One thread only.

    The first error of the disk turns writing to it off, for good, with one warning; what it holds can still be read.
    """

    def __init__(self, *, host: HostTier | None = None, disk: DiskTier | None = None) -> None:
        self._host = host
        self._disk = disk
        self._writable = disk is not None and disk.num_slots > 0
        self._host_open = True
        self._checksums: dict[bytes, int] = {}
        self.num_damaged = 0
        self.num_lost = 0
        self.num_errors = 0

    @property
    def host_bytes(self) -> int:
        """Bytes that pieces take in host memory."""
        return 0 if self._host is None else self._host.used_bytes

    @property
    def num_slots(self) -> int:
        """Pieces that all tiers can hold."""
        return sum(tier.num_slots for tier in (self._host, self._disk) if tier is not None)

    @property
    def host_capacity_bytes(self) -> int:
        """Bytes that pieces may take in host memory."""
        return 0 if self._host is None else self._host.capacity_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes that pieces take on disk."""
        return 0 if self._disk is None else self._disk.used_bytes

    @property
    def accepts(self) -> bool:
        """Whether a piece can be kept at all: False once the disk has failed, while there is no host memory either."""
        return self._writable or (self._host is not None and self._host_open)

    @property
    def gives_memory_back(self) -> bool:
        """Whether what is put here leaves the process's memory."""
        return self._writable and (self._host is None or not self._host_open)

    def __contains__(self, key: bytes) -> bool:
        """Whether a piece is here."""
        return key in self._checksums

    @property
    def has_idle_room(self) -> bool:
        """Whether an idle piece can find a place."""
        host = self._host if self._host_open else None
        disk = self._disk if self._writable else None
        return (host is not None and not host.all_kept) or (disk is not None and not disk.all_kept)

    def put(self, key: bytes, data: bytes, *, idle: bool = False) -> bool:
        """Keep a piece, at the price of the oldest ones (an `idle` one: of idle ones); False where no tier can take it.

        An old one is replaced.
        """
        self.drop(key)
        kept = self._put_host(key, data, idle) or self._put_disk(key, data, idle)
        if kept:
            self._checksums[key] = zlib.crc32(data)
        else:
            self.num_lost += not idle
        return kept

    def keep(self, key: bytes) -> None:
        """A piece is idle no longer; nothing happens where it is not here, or was not idle."""
        for tier in (self._host, self._disk):
            if tier is not None:
                tier.keep(key)

    def get(self, key: bytes) -> bytes | None:
        """Return a piece as it was put, byte for byte, or None: it is not here, or was damaged and is dropped."""
        if key not in self._checksums:
            return None
        data = self._read(key)
        if data is not None and zlib.crc32(data) == self._checksums[key]:
            return data
        self.num_damaged += 1
        self.drop(key)
        return None

    def drop(self, key: bytes) -> None:
        """Forget a piece; nothing happens where it is not here."""
        if self._checksums.pop(key, None) is None:
            return
        if self._host is not None and key in self._host:
            self._host.drop(key)
        elif self._disk is not None:
            self._disk.drop(key)

    def drop_idle(self) -> int:
        """Forget the idle pieces in host memory; return the bytes given back."""
        num_bytes = self.host_bytes
        while self._host is not None and (oldest := self._host.oldest(idle_only=True)) is not None:
            self.drop(oldest)
        return num_bytes - self.host_bytes

    def leave_host(self) -> int:
        """Take no host memory from now on; what is there goes to disk, or is lost. Return the bytes given back."""
        self._host_open = False
        host, num_bytes = self._host, self.host_bytes
        while host is not None and (oldest := host.oldest()) is not None:
            data, idle = host.get(oldest), host.is_idle(oldest)
            host.drop(oldest)
            self._to_disk(oldest, data, idle)
        return num_bytes

    def use_host(self) -> None:
        """Take host memory again."""
        self._host_open = True

    def close(self) -> None:
        """Delete everything; safe to call twice."""
        self._checksums.clear()
        for tier in (self._host, self._disk):
            if tier is not None:
                tier.close()
        self._host = self._disk = None
        self._writable = False

    def _put_host(self, key: bytes, data: bytes, idle: bool) -> bool:
        host = self._host if self._host_open else None
        while host is not None:
            if host.put(key, data, idle=idle):
                return True
            oldest = host.oldest(idle_only=idle)
            if oldest is None:
                return False
            old_data, was_idle = host.get(oldest), host.is_idle(oldest)
            host.drop(oldest)
            self._to_disk(oldest, old_data, was_idle)
        return False

    def _to_disk(self, key: bytes, data: bytes, idle: bool) -> None:
        """Keep a piece that has left host memory on disk, or lose it."""
        if not self._put_disk(key, data, idle):
            del self._checksums[key]
            self.num_lost += not idle

    def _put_disk(self, key: bytes, data: bytes, idle: bool) -> bool:
        if self._disk is None or not self._writable:
            return False
        if self._disk.full:
            oldest = self._disk.oldest(idle_only=idle)
            if oldest is None:
                return False
            self.num_lost += not self._disk.is_idle(oldest)
            self.drop(oldest)
        try:
            self._disk.put(key, data, idle=idle)
        except OSError as error:
            self._turn_off(f"writing {len(data)} bytes failed: {error}")
            return False
        return True

    def _read(self, key: bytes) -> bytes | None:
        if self._host is not None and key in self._host:
            return self._host.get(key)
        assert self._disk is not None
        try:
            return self._disk.get(key)
        except OSError as error:
            self._turn_off(f"reading failed: {error}")
            return None

    def _turn_off(self, reason: str) -> None:
        self.num_errors += 1
        if self._writable:
            self._writable = False
            _log.warning("KV cache is no longer spilled to disk, what is preempted is computed again: %s", reason)
