"""How much of a file stands in the page cache: what a load left there, measured and not assumed.

Source: cachestat(2), mincore(2). The kernel answers for files that the caller owns or may write; for others mincore
says that every page is there, and so does this module.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_WINDOW_BYTES = 1 << 30
# One number on every architecture that this package runs on.
_CACHESTAT = 451
# Of a page's byte only the lowest bit means anything.
_LOWEST_BIT = bytes(state & 1 for state in range(256))


class _CacheRange(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _CacheCounts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def cached_bytes(file: Path) -> int:
    """Return the bytes of `file` that are in the page cache, in whole pages; raise `OSError` if it cannot be mapped.

    Asks cachestat(2); where there is none (before Linux 6.5) or it may not be asked, mincore(2), which looks at every
    page. Touches nothing of the file, and reads nothing from disk. Peak bytes: 256 KiB.
    """
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        num_pages = _count_pages(handle.fileno())
        if num_pages is None:
            num_pages = _look_at_pages(file, handle.fileno(), size)
    return min(size, num_pages * os.sysconf("SC_PAGE_SIZE"))


def _count_pages(descriptor: int) -> int | None:
    """Return the pages of a file that are in the page cache; None where the kernel does not count them for us."""
    counts = _CacheCounts()
    everything = _CacheRange(0, 0)
    failed = ctypes.CDLL(None).syscall(
        _CACHESTAT, ctypes.c_int(descriptor), ctypes.byref(everything), ctypes.byref(counts), ctypes.c_uint(0)
    )
    return None if failed else int(counts.cached)


def _look_at_pages(file: Path, descriptor: int, size: int) -> int:
    """Count the pages of a file that are in the page cache, mapping at most 1 GiB at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    num_pages = 0
    for begin in range(0, size, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size - begin)
        # A private mapping that could be written, because only such a buffer's address can be had; nothing is.
        with mmap.mmap(
            descriptor, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=begin
        ) as window:
            first = ctypes.c_char.from_buffer(window)
            residency = (ctypes.c_ubyte * -(-length // os.sysconf("SC_PAGE_SIZE")))()
            address = ctypes.c_void_p(ctypes.addressof(first))
            failed = libc.mincore(address, ctypes.c_size_t(length), residency)
            del first
            if failed:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
            num_pages += bytes(residency).translate(_LOWEST_BIT).count(1)
    return num_pages
