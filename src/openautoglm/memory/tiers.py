"""`HostTier` and `DiskTier`: where equal pieces of bytes wait under a key, the least recently put ones leaving first.

Both keep their pieces in slots and count exactly what they take; `SpillStore` (spill_store.py) puts them together.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict

from openautoglm.errors import OutOfMemoryError
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.spill import num_slots, slot_bytes
from openautoglm.memory.spill_file import SpillFile

HOST_TIER_NAME = "KV spill"


class _Slots:
    """Which slot holds which key, idle ones apart, oldest first; the slot freed last is used next."""

    def __init__(self, num_slots: int) -> None:
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._idle: OrderedDict[bytes, int] = OrderedDict()
        self._free: list[int] = []
        self._num_used = 0
        self._num_slots = num_slots

    def __len__(self) -> int:
        return len(self._kept) + len(self._idle)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept or key in self._idle

    @property
    def full(self) -> bool:
        return len(self) >= self._num_slots

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def is_idle(self, key: bytes) -> bool:
        return key in self._idle

    def keep(self, key: bytes) -> None:
        """Make an idle key one that is kept, the newest."""
        if key in self._idle:
            self._kept[key] = self._idle.pop(key)

    def take(self, key: bytes, *, idle: bool) -> int:
        """Return a free slot, now `key`'s; there must be one."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._num_used
            self._num_used += 1
        (self._idle if idle else self._kept)[key] = slot
        return slot

    def find(self, key: bytes) -> int:
        return self._idle[key] if key in self._idle else self._kept[key]

    def drop(self, key: bytes) -> int:
        slot = (self._idle if key in self._idle else self._kept).pop(key)
        self._free.append(slot)
        return slot

    def oldest(self, *, idle_only: bool) -> bytes | None:
        """Return the key that leaves first: idle ones do before all others."""
        oldest = next(iter(self._idle), None)
        return oldest if oldest is not None or idle_only else next(iter(self._kept), None)


class HostTier:
    """Up to `capacity_bytes` of pieces of `piece_bytes` in this process's memory, taken and given back slot by slot.

    `ledger`, where there is one, is charged for each slot before it is written.
    """

    def __init__(self, capacity_bytes: int, piece_bytes: int, *, ledger: Ledger | None = None) -> None:
        self.piece_bytes = piece_bytes
        self.slot_bytes = slot_bytes(piece_bytes)
        count = num_slots(capacity_bytes, piece_bytes)
        self.num_slots = count
        self._slots = _Slots(count)
        self.capacity_bytes = count * self.slot_bytes
        self._arena = mmap.mmap(-1, max(1, count) * self.slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._charge = None if ledger is None else ledger.reserve(HOST_TIER_NAME, 0)

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots in use."""
        return len(self._slots) * self.slot_bytes

    def __contains__(self, key: bytes) -> bool:
        """Whether a piece is here."""
        return key in self._slots

    def put(self, key: bytes, data: bytes, *, idle: bool = False) -> bool:
        """Keep a piece, `idle` or not; False, keeping nothing, where no slot is free or the ledger refuses it."""
        if self._slots.full:
            return False
        if self._charge is not None:
            try:
                self._charge.resize(self.used_bytes + self.slot_bytes)
            except OutOfMemoryError:
                return False
        begin = self._slots.take(key, idle=idle) * self.slot_bytes
        self._arena[begin : begin + len(data)] = data
        return True

    def get(self, key: bytes) -> bytes:
        """Return a piece that is here."""
        begin = self._slots.find(key) * self.slot_bytes
        return self._arena[begin : begin + self.piece_bytes]

    def drop(self, key: bytes) -> None:
        """Forget a piece that is here; its memory is given back."""
        slot = self._slots.drop(key)
        self._arena.madvise(mmap.MADV_DONTNEED, slot * self.slot_bytes, self.slot_bytes)
        if self._charge is not None:
            self._charge.resize(self.used_bytes)

    def oldest(self, *, idle_only: bool = False) -> bytes | None:
        """Return the key that leaves first: idle ones before the others, of each those that were put first."""
        return self._slots.oldest(idle_only=idle_only)

    def is_idle(self, key: bytes) -> bool:
        """Whether a piece that is here is idle."""
        return self._slots.is_idle(key)

    def keep(self, key: bytes) -> None:
        """A piece is idle no longer, if it was."""
        self._slots.keep(key)

    @property
    def all_kept(self) -> bool:
        """Whether no idle piece could find a place here."""
        return self._slots.num_kept >= self.num_slots

    def close(self) -> None:
        """Give everything back."""
        self._arena.close()
        if self._charge is not None:
            self._charge.release()


class DiskTier:
    """Up to `capacity_bytes` of pieces in a `SpillFile`.

    Methods may raise `OSError`; a piece whose writing failed is not here.
    """

    def __init__(self, capacity_bytes: int, piece_bytes: int, file: SpillFile) -> None:
        self.piece_bytes = piece_bytes
        self._file = file
        self.num_slots = num_slots(capacity_bytes, piece_bytes)
        self._slots = _Slots(self.num_slots)

    @property
    def full(self) -> bool:
        """Whether a piece must go before another can come."""
        return self._slots.full

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots in use; the file itself is as long as it was at its fullest."""
        return len(self._slots) * self._file.slot_bytes

    def put(self, key: bytes, data: bytes, *, idle: bool = False) -> None:
        """Write a piece; there must be room for it."""
        slot = self._slots.take(key, idle=idle)
        try:
            self._file.write(slot, data)
        except OSError:
            self._slots.drop(key)
            raise

    def get(self, key: bytes) -> bytes:
        """Read a piece that is here; shorter where the file was cut."""
        return self._file.read(self._slots.find(key), self.piece_bytes)

    def drop(self, key: bytes) -> None:
        """Forget a piece that is here."""
        self._slots.drop(key)

    def oldest(self, *, idle_only: bool = False) -> bytes | None:
        """Return the key that leaves first: idle ones before the others, of each those that were put first."""
        return self._slots.oldest(idle_only=idle_only)

    def is_idle(self, key: bytes) -> bool:
        """Whether a piece that is here is idle."""
        return self._slots.is_idle(key)

    def keep(self, key: bytes) -> None:
        """A piece is idle no longer, if it was."""
        self._slots.keep(key)

    @property
    def all_kept(self) -> bool:
        """Whether no idle piece could find a place here."""
        return self._slots.num_kept >= self.num_slots

    def close(self) -> None:
        """Delete everything."""
        self._file.close()
