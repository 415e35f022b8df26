"""Reading a packed file straight into the memory that the weights will live in, checked slice by slice."""

from __future__ import annotations

import fcntl
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from openautoglm.checkpoint.direct import open_direct
from openautoglm.checkpoint.packed_format import (
    PackedFileError,
    PackedHeader,
    PackedLayout,
    parse_header,
)
from openautoglm.units import MIB

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Position, target (None: only checked), bytes, CRC-32, and whether its pages are dropped.
CheckedSlice = tuple[int, memoryview | None, int, int, bool]
# Reads slices of a descriptor with several threads; returns the first bad one and the end of a file that is too short,
# -1 for what is not.
ReadChecked = Callable[[int, Sequence[CheckedSlice]], tuple[int, int]]

# Whoever waits for a load hears of it after each run of slices.
_RUN_BYTES = 128 * MIB
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class PackedReader:
    """An open packed file whose header fits what is needed; a context manager. While it is open, nobody evicts it."""

    def __init__(self, descriptor: int, path: Path, layout: PackedLayout) -> None:
        self._descriptor = descriptor
        self._layout = layout
        self.path = path
        self.inode = os.fstat(descriptor).st_ino
        self.header: PackedHeader | None = None

    @classmethod
    def open(cls, path: Path, layout: PackedLayout) -> PackedReader | None:
        """Open a file and mark it as used now; return None if there is none. Its header is checked by `check`.

        Raises `OSError`, and `PackedFileError` for what is no private regular file of this user.
        """
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
        except FileNotFoundError:
            return None
        try:
            _check_owner(os.fstat(descriptor))
            _lock_shared(descriptor)
            return cls(descriptor, path, layout)
        except BaseException:
            os.close(descriptor)
            raise

    def check(self) -> PackedHeader:
        """Read and check the header, and note the use; raise `OSError` or `PackedFileError`."""
        file_bytes = os.fstat(self._descriptor).st_size
        data = b"" if file_bytes != self._layout.file_bytes else self._read(0, self._layout.header_bytes)
        self.header = parse_header(data, self._layout, file_bytes=file_bytes)
        with suppress(OSError):  # a read-only file system: the order of use stays as it is
            os.utime(self._descriptor)
        return self.header

    def read_vectors(self) -> list[NDArray[np.float32]]:
        """Return every vector, in the layout's order. Raises `OSError`, `PackedFileError`. Peak bytes: the result."""
        import numpy as np

        assert self.header is not None
        data = self._read(self._layout.vectors_begin, self._layout.vectors_bytes)
        if zlib.crc32(data) != self.header.vectors_checksum:
            raise PackedFileError("the vectors do not match their checksum")
        values = np.frombuffer(data, dtype="<f4")
        ends = np.cumsum(self._layout.vector_elements)[:-1]
        return [np.ascontiguousarray(vector, dtype=np.float32) for vector in np.split(values, ends)]

    def read_matrices(
        self,
        targets: Sequence[memoryview | None],
        *,
        read_checked: ReadChecked,
        keep_pages: bool,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Fill the targets with the matrices and check every slice; on failure their contents are arbitrary.

        A matrix whose target is None stays on disk: it is checked, and its pages are dropped. `on_bytes` hears how many
        bytes each run of slices had. `keep_pages` leaves the others in the page cache for the next start; otherwise
        their pages are dropped too. Allocates what `read_checked` does. Raises `OSError`, `PackedFileError`.
        """
        assert self.header is not None
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        run: list[CheckedSlice] = []
        run_bytes = first = 0
        for index, piece in enumerate(self._layout.slices()):
            target = targets[piece.matrix]
            part = None if target is None else target[piece.offset : piece.offset + piece.num_bytes]
            position = self._layout.arena_begin + piece.begin
            checksum = self.header.slice_checksums[index]
            run.append((position, part, piece.num_bytes, checksum, target is None or not keep_pages))
            run_bytes += piece.num_bytes
            if run_bytes >= _RUN_BYTES or index + 1 == self._layout.num_slices:
                bad, file_end = read_checked(self._descriptor, run)
                if file_end >= 0:
                    raise PackedFileError(f"the file ends at byte {file_end}: somebody truncated it")
                if bad >= 0:
                    raise PackedFileError(
                        f"slice {first + bad} of {self._layout.num_slices} does not match its checksum"
                    )
                on_bytes(run_bytes)
                run, run_bytes, first = [], 0, index + 1

    def open_direct(self) -> tuple[int, bool]:
        """Return a second descriptor of the same file, and whether its reads go past the page cache.

        It keeps evictors away as well; whoever gets it closes it. Raises `OSError`.
        """
        descriptor, direct = open_direct(Path(f"/proc/self/fd/{self._descriptor}"))
        _lock_shared(descriptor)
        return descriptor, direct

    def _read(self, position: int, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        self._read_into(memoryview(data), position)
        return bytes(data)

    def _read_into(self, target: memoryview, position: int) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], position + done)
            if count == 0:
                raise PackedFileError(f"the file ends at byte {position + done}: somebody truncated it")
            done += count

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PackedReader:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _check_owner(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PackedFileError("it is no regular file")
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_MAY_WRITE:
        raise PackedFileError("others own it or may write it, so its contents cannot be trusted")


def _lock_shared(descriptor: int) -> None:
    """Keep evictors away. File systems without locks have none to keep; removing an open file harms no reader."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
