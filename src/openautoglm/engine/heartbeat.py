"""`Heartbeat`: a counter in shared memory that a live engine keeps advancing."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

COUNTER_BYTES = 8


class Heartbeat:
    """A 64-bit counter in a file mapped by both processes; one side writes. Whoever reads needs no answer from it.

    `counter` is the mapped number as an array of one element, for code that advances it from below Python.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, COUNTER_BYTES)
            shared = mmap.mmap(descriptor, COUNTER_BYTES)
        finally:
            os.close(descriptor)
        self.counter: NDArray[np.uint64] = np.frombuffer(shared, dtype=np.uint64)

    @property
    def value(self) -> int:
        """The count so far."""
        return int(self.counter[0])

    def beat(self) -> None:
        """Advance by one."""
        self.counter[0] += np.uint64(1)

    def close(self) -> None:
        """Let go of the map; safe to call twice. It goes when nobody holds `counter` any more."""
        self.counter = self.counter.copy()

    def __enter__(self) -> Heartbeat:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmap."""
        self.close()
