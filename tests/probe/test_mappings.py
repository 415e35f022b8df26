"""Mappings by kind, and what the allocator tells: against mappings and allocations made on purpose."""

from __future__ import annotations

import ctypes
import mmap

from openautoglm.probe.mappings import parse_mappings, probe_mappings
from openautoglm.probe.native_heap import parse_malloc_info, probe_native_heap
from openautoglm.units import MIB

SMAPS = """\
55d0a0000000-55d0a0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                 100 kB
Pss:                 100 kB
AnonHugePages:         0 kB
Swap:                  4 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
Rss:                2048 kB
Pss:                2048 kB
AnonHugePages:      2048 kB
7f0000400000-7f0000800000 rw-p 00000000 00:00 0                          [anon:weights]
Size:               4096 kB
Rss:                 512 kB
Pss:                 512 kB
7f0001000000-7f0001001000 r-xp 00000000 08:01 1234                       /usr/lib/libc.so.6
Size:                  4 kB
Rss:                   4 kB
Pss:                   1 kB
7f0001002000-7f0001003000 r-xp 00000000 08:01 1235                   /home/somebody/a name/_core.abi3.so (deleted)
Size:                  4 kB
Rss:                   4 kB
Pss:                   4 kB
7f0001004000-7f0001005000 rw-s 00000000 00:01 77                         /memfd:ring (deleted)
Rss:                   4 kB
7f0001006000-7f0001007000 r--s 00000000 08:01 78                         /home/somebody/model.safetensors
Rss:                   8 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  16 kB
7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   4 kB
"""


def test_kinds_are_told_apart_and_summed() -> None:
    kinds = parse_mappings(SMAPS.splitlines())
    assert {kind: sums.resident_bytes >> 10 for kind, sums in kinds.items()} == {
        "heap": 100, "anonymous": 2560, "library": 8, "shared": 4, "file": 8, "stack": 16, "kernel": 4,
    }  # fmt: skip
    anonymous = kinds["anonymous"]
    assert (anonymous.num_mappings, anonymous.mapped_bytes, anonymous.huge_bytes) == (2, 8 * MIB, 2 * MIB)
    assert anonymous.largest == (2 * MIB, MIB // 2)
    assert kinds["library"].proportional_bytes == 5 << 10
    assert kinds["heap"].swapped_bytes == 4 << 10
    assert "somebody" not in repr(kinds)


def test_lines_that_are_no_smaps_give_nothing() -> None:
    assert parse_mappings(["", "Rss: 4 kB", "nonsense"]) == {}


def test_a_mapping_of_this_process_is_found() -> None:
    before = probe_mappings()["anonymous"]
    with mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped[:] = bytes(40 * MIB)
        after = probe_mappings()["anonymous"]
    assert after.resident_bytes - before.resident_bytes >= 39 * MIB
    assert max(after.largest) >= 40 * MIB


def test_the_allocator_tells_what_it_holds() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    before = probe_native_heap()
    blocks = [libc.malloc(20_000) for _ in range(500)]
    after = probe_native_heap()
    if before is None or after is None:
        assert not hasattr(libc, "mallinfo2")
        return
    assert after.used_bytes - before.used_bytes >= 500 * 20_000
    assert after.num_arenas >= 1
    assert after.arenas[0].system_bytes >= after.arenas[-1].system_bytes > 0
    for block in blocks:
        libc.free(block)
    freed = probe_native_heap()
    assert freed is not None
    assert after.used_bytes - freed.used_bytes >= 500 * 20_000


def test_arenas_of_malloc_info() -> None:
    text = """<malloc version="1">
<heap nr="0"><sizes></sizes><total type="fast" count="2" size="100"/><total type="rest" count="9" size="400"/>
<system type="current" size="4096"/><system type="max" size="8192"/></heap>
<heap nr="1"><total type="fast" count="0" size="0"/><total type="rest" count="1" size="7"/>
<system type="current" size="1024"/><system type="max" size="1024"/></heap>
<total type="fast" count="2" size="100"/><total type="mmap" count="3" size="999"/>
<system type="current" size="5120"/></malloc>"""
    assert [(arena.system_bytes, arena.free_bytes) for arena in parse_malloc_info(text)] == [(4096, 500), (1024, 7)]
    assert parse_malloc_info("") == []
