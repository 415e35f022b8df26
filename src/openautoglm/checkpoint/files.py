"""Opening files of a checkpoint: regular files only, never waiting on a pipe, errors with the path and what to do.

Symbolic links are followed: the Hugging Face cache itself is made of links out of the snapshot directory. What a
checkpoint may choose, the names in its index, is checked to be plain names of files beside the index.
"""

from __future__ import annotations

import os
import reprlib
import stat
from pathlib import Path
from typing import BinaryIO

from openautoglm.errors import CheckpointFormatError
from openautoglm.units import format_bytes

_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 80


def quoted(value: object) -> str:
    """Return a hostile value as a short ASCII literal that is safe to print."""
    return _SHORT_REPR.repr(value).encode("ascii", "backslashreplace").decode("ascii")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def open_regular_file(path: Path) -> BinaryIO:
    """Open a regular file for unbuffered reading; raise `CheckpointFormatError` for anything else at `path`."""
    try:
        file = open(path, "rb", buffering=0, opener=_open_without_waiting)  # noqa: SIM115 - needs an opener
    except OSError as error:
        raise CheckpointFormatError(f"{path}: {_reason(path, error)}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointFormatError(f"{path} is a pipe, socket or device: expected a regular file; download it again")
    return file


def _reason(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() if path.is_symlink():
            return "a symbolic link to a file that is not there; download the model again"
        case FileNotFoundError():
            return "there is no such file; check the directory, or download the model again"
        case IsADirectoryError():
            return "is a directory: expected a regular file; download the model again"
        case PermissionError():
            return "no permission to read it; change the file's mode or its owner"
        case _:
            return f"cannot be opened ({error.strerror or error}); check the disk, or download the model again"


def read_small_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes` (which is also the peak); raise `CheckpointFormatError` otherwise."""
    with open_regular_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > max_bytes else _read_up_to(file, max_bytes + 1)
        except OSError as error:
            raise CheckpointFormatError(f"{path}: {_reason(path, error)}") from error
    if max(size, len(data)) > max_bytes:
        raise CheckpointFormatError(
            f"{path} has {format_bytes(max(size, len(data)))}: at most {format_bytes(max_bytes)} are read of such a "
            "file; download it again"
        )
    return data


def _read_up_to(file: BinaryIO, num_bytes: int) -> bytes:
    pieces: list[bytes] = []
    while num_bytes > 0 and (piece := file.read(min(num_bytes, 1 << 20))):
        pieces.append(piece)
        num_bytes -= len(piece)
    return b"".join(pieces)
