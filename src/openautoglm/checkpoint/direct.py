"""Opening a file so that reads go past the page cache, where its file system has such reads."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

# Direct reads begin, end and land on multiples of this: as the native core's kDirectBytes.
DIRECT_BYTES = 4096


def open_direct(path: Path) -> tuple[int, bool]:
    """Return a descriptor for reading, and whether it was opened with O_DIRECT; the caller closes it.

    Some file systems refuse the flag, others the first read: both are tried. Raises `OSError` for any other failure.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    try:
        with mmap.mmap(-1, DIRECT_BYTES) as page:
            os.preadv(descriptor, [page], 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    return descriptor, True
