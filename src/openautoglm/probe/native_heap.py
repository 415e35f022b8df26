"""What the C library's allocator holds in this process, arena by arena. Source: mallinfo(3), malloc_info(3).

Only glibc tells; elsewhere (musl, other systems) there is nothing to report.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

MAX_ARENAS = 16
_HEAP = re.compile(r"<heap nr=.*?</heap>", re.DOTALL)
_FREE = re.compile(r'<total type="(?:fast|rest)" count="\d+" size="(\d+)"/>')
_SYSTEM = re.compile(r'<system type="current" size="(\d+)"/>')


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """One arena: bytes that it has from the system, and how many of them are free."""

    system_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeHeap:
    """All arenas: bytes in use and free in them, mappings of single allocations; `arenas` are the largest ones."""

    used_bytes: int
    free_bytes: int
    trimmable_bytes: int
    num_mapped: int
    mapped_bytes: int
    num_arenas: int
    arenas: tuple[Arena, ...]


class _MallInfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def probe_native_heap() -> NativeHeap | None:
    """Ask the allocator of this process; None where it cannot tell. Takes its locks for a moment."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):  # before glibc 2.33 the counters were of 32 bits, and wrong beyond 2 GiB
        return None
    library.mallinfo2.restype = _MallInfo2
    info = library.mallinfo2()
    arenas = parse_malloc_info(_malloc_info(library))
    return NativeHeap(
        used_bytes=info.uordblks,
        free_bytes=info.fordblks,
        trimmable_bytes=info.keepcost,
        num_mapped=info.hblks,
        mapped_bytes=info.hblkhd,
        num_arenas=len(arenas),
        arenas=tuple(sorted(arenas, key=lambda arena: -arena.system_bytes)[:MAX_ARENAS]),
    )


def parse_malloc_info(text: str) -> list[Arena]:
    """Return the arenas that malloc_info tells of; none for text that is not its own."""
    return [
        Arena(
            system_bytes=sum(map(int, _SYSTEM.findall(heap))),
            free_bytes=sum(map(int, _FREE.findall(heap))),
        )
        for heap in _HEAP.findall(text)
    ]


def _malloc_info(library: ctypes.CDLL) -> str:
    """Return what malloc_info writes, by way of a stream in memory."""
    library.open_memstream.restype = ctypes.c_void_p
    library.open_memstream.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t))
    library.malloc_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.fclose.argtypes = (ctypes.c_void_p,)
    library.free.argtypes = (ctypes.c_void_p,)
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = library.open_memstream(ctypes.byref(buffer), ctypes.byref(size))
    if not stream:
        return ""
    failed = library.malloc_info(0, stream)
    library.fclose(stream)
    try:
        return "" if failed or not buffer.value else ctypes.string_at(buffer, size.value).decode("ascii", "replace")
    finally:
        library.free(buffer)
