"""`BlockPool`: which KV blocks are free, cached or live. Ids only, no tensors.

    free ──allocate──> live (references > 0) ──last release──> free      the block holds nothing reusable
      ▲                  │  ▲                        │
      │               register └──share── cached <───┘                   the block holds a prefix under a key
      └────────────────────────evict───────┘

    always: num_free + num_cached + num_live == num_blocks

A pinned block is live for good: it holds a prefix that nothing evicts, and follows it when the pool shrinks.

A cached block keeps its content until it is the least recently released one and the free list is empty. Between steps
the pool may shrink and grow: blocks are numbered from 0, so that what lies beyond a smaller number can be given back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from openautoglm.errors import EngineError
from openautoglm.memory.ledger import Reservation
from openautoglm.memory.runtime import block_index_bytes


class BlockPool:
    """Reference counts, free list and prefix content of `num_blocks` blocks of `block_tokens` tokens.

    The free list is a stack: recently used memory is used again first. Cached blocks are evicted in the order in which
    they were released, those of `retained` keys after all others. `charge` is what a ledger holds for this index
    itself. One thread only.
    """

    def __init__(self, num_blocks: int, block_tokens: int, *, charge: Reservation | None = None) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise EngineError(f"a pool needs blocks and tokens in them, got {num_blocks} blocks of {block_tokens}")
        self.num_blocks = num_blocks
        self.most_blocks = num_blocks  # that there ever were: the allocator keeps what their index took
        self.block_tokens = block_tokens
        self._charge = charge
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_of_key: dict[bytes, int] = {}
        self._free = list(reversed(range(num_blocks)))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()  # cached too, of keys in `retained`
        self.retained: set[bytes] = set()
        self._pinned: list[int] = []
        # Told of a cached block whose content is given up, and whether for another use (else the memory is to go).
        self.on_evict: Callable[[int, bytes, bool], None] | None = None

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses and that hold a prefix."""
        return len(self._cached) + len(self._kept)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones, and cached ones by eviction."""
        return len(self._free) + len(self._cached) + len(self._kept)

    @property
    def num_live(self) -> int:
        """Blocks in use."""
        return self.num_blocks - self.num_available

    @property
    def num_pinned(self) -> int:
        """Blocks of prefixes that stay; they count as live."""
        return len(self._pinned)

    @property
    def num_usable(self) -> int:
        """Blocks that sequences may come to have."""
        return self.num_blocks - len(self._pinned)

    @property
    def num_used(self) -> int:
        """Blocks in use beside those of prefixes that stay."""
        return self.num_live - len(self._pinned)

    def pin(self, blocks: Iterable[int]) -> None:
        """Keep live blocks and what they hold for good: the caller's reference becomes the pool's."""
        self._pinned.extend(blocks)

    @property
    def index_bytes(self) -> int:
        """What the index takes at most with the blocks that hold a prefix now."""
        return block_index_bytes(len(self._block_of_key))

    def live_blocks(self) -> list[int]:
        """Return the blocks in use, ascending."""
        return [block for block, references in enumerate(self._references) if references]

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks with one reference each; None, and nothing taken, when fewer are available."""
        if count > self.num_available:
            return None
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def _evict(self, *, used_again: bool = True) -> int:
        block, _ = (self._cached or self._kept).popitem(last=False)
        key = self._keys[block]
        if key is not None:
            if self.on_evict is not None:
                self.on_evict(block, key, used_again)
            del self._block_of_key[key]
        self._keys[block] = None
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to live or cached blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del (self._cached if block in self._cached else self._kept)[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a reference of each block of a table; the table's end becomes evictable before its beginning."""
        for block in reversed(blocks):
            references = self._references[block] - 1
            if references < 0:
                raise EngineError(f"block {block} was released more often than taken: this is a bug, please report it")
            self._references[block] = references
            if references:
                continue
            key = self._keys[block]
            if key is None:
                self._free.append(block)
            else:
                (self._kept if key in self.retained else self._cached)[block] = None

    def register(self, block: int, key: bytes) -> bool:
        """Make a live block's content findable; False when other block already holds the same content."""
        if key in self._block_of_key:
            return self._block_of_key[key] == block
        self._keys[block] = key
        self._block_of_key[key] = block
        return True

    def retain(self, keys: Iterable[bytes]) -> None:
        """Evict the blocks of these keys after all others."""
        for key in keys:
            self.retained.add(key)
            block = self._block_of_key.get(key)
            if block in self._cached and block is not None:
                del self._cached[block]
                self._kept[block] = None

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Retain these keys no longer: of the cached blocks theirs are evicted first."""
        for key in keys:
            self.retained.discard(key)
            block = self._block_of_key.get(key)
            if block in self._kept and block is not None:
                del self._kept[block]
                self._cached[block] = None
                self._cached.move_to_end(block, last=False)

    def lookup(self, key: bytes) -> int | None:
        """Return the block that holds `key`'s content, live or cached, without taking it."""
        return self._block_of_key.get(key)

    def is_cached(self, block: int) -> bool:
        """Whether the block is unused and holds a prefix (taking it makes one fewer available)."""
        return block in self._cached or block in self._kept

    def drop_cached(self, count: int | None = None) -> int:
        """Forget up to `count` cached blocks (all by default), the oldest first; return how many became free."""
        num_dropped = self.num_cached if count is None else min(count, self.num_cached)
        self._free.extend(self._evict(used_again=False) for _ in range(num_dropped))
        return num_dropped

    def shrink(self, num_blocks: int) -> list[tuple[int, int]]:
        """Leave `num_blocks` blocks; return what must be copied, as (old block, new block), before anything else.

        All live blocks stay, and of the cached ones the last released, as many as fit; those beyond the new end move to
        free places below it. Raises `EngineError` when more blocks are live than may stay.
        """
        if not self.num_live <= num_blocks <= self.num_blocks:
            raise EngineError(
                f"the pool of {self.num_blocks} blocks cannot shrink to {num_blocks}: {self.num_live} are in use"
            )
        self.drop_cached(max(0, self.num_live + self.num_cached - num_blocks))
        free = [block for block in self._free if block < num_blocks]
        kept = (b for b in range(num_blocks, self.num_blocks) if self._references[b] or self.is_cached(b))
        moves = [(block, free.pop()) for block in kept]
        for old, new in moves:
            self._references[new] = self._references[old]
            key = self._keys[new] = self._keys[old]
            if key is not None:
                self._block_of_key[key] = new
        new_places = dict(moves)
        self._cached = OrderedDict((new_places.get(block, block), None) for block in self._cached)
        self._kept = OrderedDict((new_places.get(block, block), None) for block in self._kept)
        self._pinned = [new_places.get(block, block) for block in self._pinned]
        self._free = free
        del self._references[num_blocks:], self._keys[num_blocks:]
        self.num_blocks = num_blocks
        return moves

    def grow(self, num_blocks: int) -> None:
        """Have `num_blocks` blocks; the new ones are free, and used after those that were free before.

        Raises `OutOfMemoryError`, changing nothing, when the ledger has no room for the index of more than ever.
        """
        num_new = num_blocks - self.num_blocks
        if num_new < 0:
            raise EngineError(f"the pool of {self.num_blocks} blocks cannot grow to {num_blocks}")
        if num_blocks > self.most_blocks:
            if self._charge is not None:
                self._charge.resize(block_index_bytes(num_blocks))
            self.most_blocks = num_blocks
        self._references.extend([0] * num_new)
        self._keys.extend([None] * num_new)
        self._free[:0] = reversed(range(self.num_blocks, num_blocks))
        self.num_blocks = num_blocks

    def integrity_check(self, holders: Iterable[Sequence[int]]) -> None:
        """Compare every count with the tables of all `holders`; raise `EngineError` naming what differs."""
        expected = Counter(block for table in (*holders, self._pinned) for block in table)
        wrong = [b for b in range(self.num_blocks) if self._references[b] != expected[b]]
        free, cached = set(self._free), set(self._cached) | set(self._kept)
        live = {block for block, references in enumerate(self._references) if references}
        keyed = {block: key for block, key in enumerate(self._keys) if key is not None}
        problems = {
            f"references of blocks {wrong[:8]} differ from their holders": wrong,
            "a block is twice on the free list": len(free) != len(self._free),
            "free, cached and live blocks overlap": free & cached or free & live or cached & live,
            "free, cached and live blocks are not the whole pool": (
                len(free) + len(cached) + len(live) != self.num_blocks
            ),
            "a block is kept that is not retained, or the other way round": (
                any(keyed.get(b) not in self.retained for b in self._kept)
                or any(keyed.get(b) in self.retained for b in self._cached)
            ),
            "a cached block has no key": cached - keyed.keys(),
            "a free block has a key": free & keyed.keys(),
            "keys and blocks do not match": {key: block for block, key in keyed.items()} != self._block_of_key,
        }
        found = [message for message, bad in problems.items() if bad]
        if found:
            raise EngineError(f"the block pool is inconsistent: {'; '.join(found)}: this is a bug, please report it")
