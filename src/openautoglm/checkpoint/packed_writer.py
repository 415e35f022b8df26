"""Writing a packed file on a thread of its own, behind the load that packs the matrices.

    partial file, locked  ->  matrices as they become complete  ->  vectors, header  ->  rename to the final name

Each slice is on the disk, and out of the page cache, before the next one is written, so that at most one slice of dirty
pages counts against the memory of this process's control group.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from openautoglm.checkpoint.packed_format import PackedHeader, PackedLayout, PackedSlice, encode_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTIAL_SUFFIX = ".partial"
_WAIT_SECONDS = 0.5
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class PackedWriter:
    """Writes one packed file; `close` without `finish` leaves nothing behind.

    One thread may call. The constructor raises `OSError`.
    """

    def __init__(self, path: Path, layout: PackedLayout) -> None:
        self._path = path
        self._layout = layout
        self._slices = layout.slices()
        self._writes: list[Future[int]] = []
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="packed-write")
        self._partial, self._descriptor = _create_partial(path)

    def add_matrix(self, data: memoryview) -> None:
        """Write the next matrix meanwhile; its bytes must not change or go until `wait_written` or `close`."""
        matrix = self._slices[len(self._writes)].matrix
        while len(self._writes) < len(self._slices) and self._slices[len(self._writes)].matrix == matrix:
            piece = self._slices[len(self._writes)]
            view = data[piece.offset : piece.offset + piece.num_bytes]
            self._writes.append(self._threads.submit(self._write_slice, piece, view))

    def wait_written(self, on_wait: Callable[[], None]) -> None:
        """Wait until all matrices that were added are on the disk; raise `OSError` if a write failed.

        `on_wait` is called about twice a second while there is something to wait for.
        """
        while wait(self._writes, timeout=_WAIT_SECONDS).not_done:
            on_wait()
        for write in self._writes:
            write.result()

    def finish(
        self,
        vectors: Sequence[NDArray[np.float32]],
        *,
        weights_digest: bytes,
        source: str,
        on_wait: Callable[[], None],
    ) -> None:
        """Wait for all matrices, write the rest, and give the file its name; raise `OSError` if any write failed."""
        assert len(self._writes) == len(self._slices)
        self.wait_written(on_wait)
        checksums = tuple(write.result() for write in self._writes)
        data = b"".join(vector.astype("<f4", copy=False).tobytes() for vector in vectors)
        header = PackedHeader(
            weights_digest=weights_digest,
            source=source,
            vectors_checksum=zlib.crc32(data),
            slice_checksums=checksums,
        )
        _write_all(self._descriptor, memoryview(data), self._layout.vectors_begin)
        _write_all(self._descriptor, memoryview(encode_header(self._layout, header)), 0)
        os.fdatasync(self._descriptor)
        self._partial.rename(self._path)

    def close(self) -> None:
        """Stop; a file that was not finished goes. Safe to call twice."""
        self._stopped.set()
        if self._descriptor < 0:
            return
        # The name goes first: a second Ctrl-C while the thread is waited for leaves nothing either.
        self._partial.unlink(missing_ok=True)
        self._threads.shutdown(wait=True, cancel_futures=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _write_slice(self, piece: PackedSlice, data: memoryview) -> int:
        """Write a slice and return its checksum; after a failure the rest is not tried."""
        if self._stopped.is_set():
            return 0
        position = self._layout.arena_begin + piece.begin
        try:
            _write_all(self._descriptor, data, position)
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, position, piece.num_bytes, os.POSIX_FADV_DONTNEED)
        except OSError:
            self._stopped.set()
            os.ftruncate(self._descriptor, 0)  # a full disk gets its space back now, not at the end of the load
            raise
        return zlib.crc32(data)


def _create_partial(path: Path) -> tuple[Path, int]:
    """Create a file beside `path` and lock it, which says that its writer lives; return it and its descriptor.

    Where the file system has no locks, nobody can take the writer for dead either.
    """
    while True:
        partial = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(6).hex()}{PARTIAL_SUFFIX}")
        descriptor = os.open(partial, _CREATE_FLAGS, 0o600)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # who holds it now is about to remove the file
        if os.fstat(descriptor).st_nlink:
            return partial, descriptor
        os.close(descriptor)  # taken for a dead writer's before it was locked


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], position + done)
