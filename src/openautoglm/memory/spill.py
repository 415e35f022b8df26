"""What spill tiers take: pure formulas, of which `tiers.py` and `spill_store.py` are the other side."""

from __future__ import annotations

import mmap

from openautoglm.spec.spill import SpillTiers
from openautoglm.units import round_up

# A piece's key, checksum and slot, and who waits for it, as Python objects (tests/engine/test_spill_price.py).
PIECE_INDEX_BYTES = 640
# At once: a block as it is exported or read, the same once more on its way, and the buffer of the file.
NUM_BUFFERS = 3


def slot_bytes(payload_bytes: int) -> int:
    """Return what a piece takes in a tier: whole pages, which also suit direct I/O."""
    return round_up(payload_bytes, mmap.PAGESIZE)


def num_slots(capacity_bytes: int, payload_bytes: int) -> int:
    """Return how many pieces a tier of this size holds."""
    return capacity_bytes // slot_bytes(payload_bytes)


def host_tier_bytes(tiers: SpillTiers, block_bytes: int) -> int:
    """Return the host memory of the pieces in host memory, at most."""
    return num_slots(tiers.memory_bytes, block_bytes) * slot_bytes(block_bytes)


def overhead_bytes(tiers: SpillTiers, block_bytes: int) -> int:
    """Return the host memory that the tiers take beside that: buffers, and the index of both tiers."""
    if not tiers:
        return 0
    num_pieces = num_slots(tiers.memory_bytes, block_bytes) + num_slots(tiers.disk_bytes, block_bytes)
    return NUM_BUFFERS * slot_bytes(block_bytes) + num_pieces * PIECE_INDEX_BYTES


def spill_bytes(tiers: SpillTiers, block_bytes: int) -> int:
    """Return all host memory of the tiers for blocks of `block_bytes`."""
    return host_tier_bytes(tiers, block_bytes) + overhead_bytes(tiers, block_bytes)
