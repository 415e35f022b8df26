"""Measures decode attention over each KV format on one core: a single query token, blocks in random order.

    python benchmarks/micro/attention.py [--isa avx2] [--head-dim 128] [--context 8192]

Rows of the table are formats and where the cache lies, columns query heads per kv head. A cell is nanoseconds per key
and the bytes of keys, values and scales read per second. "memory" walks as many kv heads as outgrow the last-level
cache, so that every block comes from memory; "cache" attends one head of 2,048 keys again and again. Every figure is
the best of several rounds, so that neighbours disturb it least; making the table of blocks is part of a call.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from openautoglm.native import _core
from openautoglm.units import MIB

FORMATS = ("f32", "bf16", "int8", "fp8")
GROUPS = (1, 2, 4, 8, 16)
BLOCK_TOKENS = 16
MEMORY_BYTES = 128 * MIB
CACHED_TOKENS = 2048
ROUNDS = 10
ALIGNMENT = 4096


def aligned_blocks(isa: str, kv: str, num_blocks: int, head_dim: int) -> np.ndarray:
    """Return [num_blocks, bytes] of a cache whose every slot holds a random token."""
    block_bytes = _core.kv_head_bytes(kv, head_dim)
    memory = np.empty(num_blocks * block_bytes + ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    blocks = memory[begin : begin + num_blocks * block_bytes].reshape(num_blocks, block_bytes)
    one = np.zeros(block_bytes, dtype=np.uint8)
    for slot, (key, value) in enumerate(np.random.default_rng(5).standard_normal((BLOCK_TOKENS, 2, head_dim))):
        _core.store_kv(isa, kv, one, slot, key.astype(np.float32), value.astype(np.float32))
    blocks[:] = one
    return blocks


def nanoseconds_per_key(isa: str, kv: str, group: int, head_dim: int, context: int, num_heads: int) -> float:
    """Return the least time per key of attention over `num_heads` heads, one after the other."""
    length = context // BLOCK_TOKENS
    blocks = aligned_blocks(isa, kv, length * num_heads, head_dim)
    order = np.random.default_rng(6).permutation(length)
    tables = [(order * num_heads + head).tolist() for head in range(num_heads)]
    query = np.random.default_rng(7).standard_normal((1, group * head_dim)).astype(np.float32)
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for table in tables:
            _core.attention(isa, kv, query, group, blocks, table, context - 1, 0, head_dim**-0.5)
        best = min(best, time.perf_counter() - begin)
    return best / num_heads / context * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="instruction set (default: the best)")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--context", type=int, default=8192, help="keys of each head in memory")
    arguments = parser.parse_args()
    isa, head_dim = _core.selected_isa(arguments.isa), arguments.head_dim
    context = arguments.context // BLOCK_TOKENS * BLOCK_TOKENS
    print(f"{isa}: heads of {head_dim}, one core; read bandwidth over 2 MB pages "
          f"{_core.probe_read_bandwidth(1, 512 * MIB) / 1e9:.1f} GB/s")  # fmt: skip
    print(f"{'cache':<14}" + "".join(f"{f'group {group}':>20}" for group in GROUPS))
    for kv in FORMATS:
        key_bytes = _core.kv_head_bytes(kv, head_dim) / BLOCK_TOKENS
        for where, keys, num_heads in (
            ("memory", context, -(-MEMORY_BYTES // int(key_bytes * context))),
            ("cache", CACHED_TOKENS, 1),
        ):
            cells = [nanoseconds_per_key(isa, kv, group, head_dim, keys, num_heads) for group in GROUPS]
            figures = "".join(f"{f'{each:.1f} ns {key_bytes / each:.1f} GB/s':>20}" for each in cells)
            print(f"{kv + ', ' + where:<14}{figures}")


if __name__ == "__main__":
    main()
