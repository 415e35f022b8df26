"""`Spill`: KV blocks of sequences that were set back, kept outside the pool until their sequence goes on.

A sequence that is preempted gives up its blocks; they stay in the pool as cached ones, under the hash of all tokens up
to their end, until somebody needs the place. Only then are they exported to the store (lazily: who comes back soon
pays nothing), and on readmission whatever is still there is shared, copied or imported; the rest is computed again.

    preempt     keys of all computed blocks become wanted; the last, partly filled block gets a key too
    evict       a wanted block is exported to the store, checksummed        (allocation, `Engine.resize_pool`, trimming)
    admit       blocks from the pool, then copies and imports up to the first one that is lost or damaged

Idle prefixes that are evicted go the same way, as far as the store has room for them beside what somebody waits for,
and come back when a prompt begins with them; those of sessions (sessions.py) are kept like what somebody waits for.

Spilling changes no output: a block's bytes are restored as they were, or its tokens are computed again, to the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.client import SpillStatus
from openautoglm.engine.request import Sequence
from openautoglm.executor.protocol import Executor
from openautoglm.memory.spill_store import SpillStore


class Spill:
    """Decides what is worth keeping, and moves it between `executor` and `store`. One thread only."""

    def __init__(self, store: SpillStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._wanted: dict[bytes, list[Sequence]] = {}
        self.retained: AbstractSet[bytes] = frozenset()  # keys of sessions: kept like those that a sequence waits for
        self.num_spilled_blocks = 0
        self.num_prefix_blocks = self.num_prefix_hits = 0
        self.num_restored_blocks = 0

    @property
    def store(self) -> SpillStore:
        """Where blocks are kept."""
        return self._store

    def status(self) -> SpillStatus:
        """Return counters and gauges."""
        store = self._store
        return SpillStatus(
            spilled_blocks=self.num_spilled_blocks,
            restored_blocks=self.num_restored_blocks,
            prefix_blocks=self.num_prefix_blocks,
            prefix_hits=self.num_prefix_hits,
            lost_blocks=store.num_lost,
            damaged_blocks=store.num_damaged,
            memory_bytes=store.host_bytes,
            disk_bytes=store.disk_bytes,
            num_errors=store.num_errors,
        )

    def want(self, sequence: Sequence, keys: list[bytes]) -> None:
        """Keep the contents under `keys`, one a block from the sequence's beginning, until it goes on or ends."""
        sequence.spill_keys = keys
        for key in keys:
            self._wanted.setdefault(key, []).append(sequence)
            self._store.keep(key)

    def forget(self, sequence: Sequence) -> None:
        """The sequence goes on or ends: what nobody else waits for leaves the store."""
        for key in sequence.spill_keys:
            waiting = self._wanted[key]
            waiting.remove(sequence)
            if not waiting:
                del self._wanted[key]
                if key not in self.retained:
                    self._store.drop(key)
        sequence.spill_keys = []

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Sessions hold these keys no longer: what no sequence waits for either leaves the store."""
        for key in keys:
            if key not in self._wanted:
                self._store.drop(key)

    def evicted(self, block: int, key: bytes, used_again: bool) -> None:
        """A cached block is given up: keep what it holds, first of all if a sequence waits for it or a session has it.

        Where it is given up for its memory and nobody waits, only what leaves this process's memory is kept of
        sessions.
        """
        store, waiting = self._store, self._wanted.get(key)
        idle = waiting is None and key not in self.retained
        if waiting is None and not used_again and (idle or not store.gives_memory_back):
            return
        if key in store:
            if not idle:
                store.keep(key)
            return
        if not store.accepts or (idle and not store.has_idle_room):
            return
        try:
            kept = store.put(key, self._executor.export_blocks([block]), idle=idle)
        except MemoryError:  # spilling happens when memory is short: without a buffer the block is computed again
            return
        if kept and waiting is None:
            self.num_prefix_blocks += 1
        if kept and waiting is not None:
            self.num_spilled_blocks += 1
            for sequence in waiting:
                sequence.request.num_spilled_blocks += 1

    def fetch(self, sequence: Sequence, *, first: int, end: int) -> int:
        """Fill the sequence's own blocks [first, end) with its prefix as far as the store has it; return how far."""
        for index in range(first, end):
            key = sequence.keys[index + 1]
            try:
                data = self._store.get(key) if key in self._store else None
            except MemoryError:
                return index
            if data is None:
                return index
            self._executor.import_blocks([sequence.blocks[index]], data)
            self.num_prefix_hits += 1
        return max(first, end)

    def restore(self, sequence: Sequence, pool: BlockPool, *, first: int) -> int:
        """Fill the sequence's own blocks from number `first` on; return how many blocks now hold what they did.

        Stops at the first block that is neither in the pool nor whole in the store.
        """
        for index in range(first, len(sequence.spill_keys)):
            key, block = sequence.spill_keys[index], sequence.blocks[index]
            source = pool.lookup(key)
            if source is not None:
                self._executor.copy_blocks([(source, block)])
                continue
            try:
                data = self._store.get(key)
            except MemoryError:
                return index
            if data is None:
                return index
            self._executor.import_blocks([block], data)
            self.num_restored_blocks += 1
            sequence.request.num_restored_blocks += 1
        return max(first, len(sequence.spill_keys))
