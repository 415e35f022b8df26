"""`SpillFile`: a private file without a name, in slots of equal size, read and written past the page cache."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

from openautoglm.memory.spill import slot_bytes

_PREFIX = "openautoglm-spill-"
# How file systems without O_TMPFILE say so (kernels before it take the flag for opening a directory).
_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class SpillFile:
    """Slots of `slot_bytes`, the payload in whole pages, as direct I/O asks for. One thread only.

    The file has mode 0600 and no name, so it is gone with the process however that ends; `directory` is made with mode
    0700 where it is missing. Holds one slot of memory as buffer. Every method may raise `OSError`.
    """

    def __init__(self, directory: Path, payload_bytes: int) -> None:
        self.slot_bytes = slot_bytes(payload_bytes)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = _open_nameless(directory)
        self.direct = _make_direct(self._fd)
        if not self.direct:  # reading ahead would fill the page cache with slots that nobody drops
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._buffer = mmap.mmap(-1, self.slot_bytes)  # page aligned

    def write(self, slot: int, data: bytes) -> None:
        """Write a slot's payload; raises `OSError` unless all of it was written."""
        self._buffer[: len(data)] = data
        offset = slot * self.slot_bytes
        with memoryview(self._buffer) as view:
            num_written = 0
            while num_written < self.slot_bytes:
                count = self._write_some(view[num_written:], offset + num_written)
                if count == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                num_written += count
        if not self.direct:
            os.fdatasync(self._fd)  # only clean pages can be dropped
            self._drop_pages(offset)

    def _write_some(self, view: memoryview, offset: int) -> int:
        return os.pwrite(self._fd, view, offset)

    def read(self, slot: int, num_bytes: int) -> bytes:
        """Return the first `num_bytes` of a slot; fewer where the file ends before."""
        offset = slot * self.slot_bytes
        with memoryview(self._buffer) as view:
            num_read = 0
            while num_read < num_bytes:
                count = os.preadv(self._fd, [view[num_read:]], offset + num_read)
                if count == 0:
                    break
                num_read += count
        if not self.direct:
            self._drop_pages(offset)
        return self._buffer[: min(num_read, num_bytes)]

    def _drop_pages(self, offset: int) -> None:
        os.posix_fadvise(self._fd, offset, self.slot_bytes, os.POSIX_FADV_DONTNEED)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Let go of the file and of its bytes on disk; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._buffer.close()


def _open_nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES:
            raise
    # A process that was killed between the next two lines left an empty file: none of these names is ever in use.
    for stale in directory.glob(f"{_PREFIX}*"):
        stale.unlink(missing_ok=True)
    fd, name = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
    Path(name).unlink(missing_ok=True)
    return fd


def _make_direct(fd: int) -> bool:
    """Ask for direct I/O; False where the file system has none, and pages are dropped after each use instead."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True
