"""`SpillStore`: pieces of bytes under keys, in host memory, on disk or both, each checked when it comes back.

put ──> host ──oldest, when full──> disk ──oldest, when full──> lost        a tier that is not there is passed by
get <───┴───────────────────────────┘      None: lost or damaged, and the caller computes it again
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

    def put(self, key: bytes, data: bytes) -> bool:
        """Keep a piece, at the price of the oldest ones; False where no tier can take it. An old one is replaced."""
        self.drop(key)
        kept = self._put_host(key, data) or self._put_disk(key, data)
        if kept:
            self._checksums[key] = zlib.crc32(data)
        else:
            self.num_lost += 1
        return kept

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

    def leave_host(self) -> int:
        """Take no host memory from now on; what is there goes to disk, or is lost. Return the bytes given back."""
        self._host_open = False
        host, num_bytes = self._host, self.host_bytes
        while host is not None and (oldest := host.oldest()) is not None:
            data = host.get(oldest)
            host.drop(oldest)
            self._to_disk(oldest, data)
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

    def _put_host(self, key: bytes, data: bytes) -> bool:
        host = self._host if self._host_open else None
        while host is not None:
            if host.put(key, data):
                return True
            oldest = host.oldest()
            if oldest is None:
                return False
            old_data = host.get(oldest)
            host.drop(oldest)
            self._to_disk(oldest, old_data)
        return False

    def _to_disk(self, key: bytes, data: bytes) -> None:
        """Keep a piece that has left host memory on disk, or lose it."""
        if not self._put_disk(key, data):
            del self._checksums[key]
            self.num_lost += 1

    def _put_disk(self, key: bytes, data: bytes) -> bool:
        if self._disk is None or not self._writable:
            return False
        oldest = self._disk.oldest() if self._disk.full else None
        if oldest is not None:
            self.drop(oldest)
            self.num_lost += 1
        try:
            self._disk.put(key, data)
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
