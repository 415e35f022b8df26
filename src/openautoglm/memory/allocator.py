"""The C library's allocator in the processes that are ours: few arenas, freed memory given back.

glibc gives threads arenas of their own and keeps what is freed in them; under a hard budget that is memory nobody can
have. Elsewhere (musl, other systems) these functions do nothing. Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
from functools import cache

from openautoglm.units import KIB, MIB

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
MAX_ARENAS = 2
# From here on an allocation is a mapping of its own, which goes back whole when it is freed. Setting it also keeps
# glibc from raising it by itself.
MAPPED_BYTES = 256 * KIB
KEPT_BYTES = 2 * MIB


def bound_allocator() -> bool:
    """Set the bounds for this process, before it starts threads; return whether there is a glibc to set them in."""
    library = _glibc()
    if library is None:
        return False
    for parameter, value in (
        (_ARENA_MAX, MAX_ARENAS),
        (_MMAP_THRESHOLD, MAPPED_BYTES),
        (_TRIM_THRESHOLD, KEPT_BYTES),
    ):
        library.mallopt(parameter, value)
    return True


def trim_allocator() -> None:
    """Give what is free in all arenas back to the system; takes milliseconds."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
