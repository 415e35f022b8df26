"""A directory for one process alone, which goes with it: whoever comes next removes what a killed one left behind."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openautoglm.log import get_logger

_OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_LOGGER = get_logger(__name__)


@contextmanager
def private_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a directory (mode 0700) in `parent`, and remove it with its contents when the block ends.

    It is locked meanwhile: those of dead processes are not, and go first. Raises `OSError`.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_leftovers(parent, prefix)
    path, descriptor = _make(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove the private directories in `parent` whose process is gone; those of others, and of other users, stay."""
    pattern = re.compile(re.escape(prefix) + "[a-z0-9_]{8}", re.ASCII)  # as tempfile names them
    for path in sorted(parent.iterdir()):
        if not pattern.fullmatch(path.name):
            continue
        with suppress(OSError):  # no directory, or it has just gone
            descriptor = os.open(path, _OPEN_FLAGS)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor, fcntl.LOCK_NB):
                    shutil.rmtree(path, ignore_errors=True)
                    _LOGGER.info("removed %s: its process died", path)
            finally:
                os.close(descriptor)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """Return a new directory and the descriptor that holds its lock, where the file system has locks."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Somebody may have taken it for a leftover before it was locked: then another one is made.
        with suppress(FileNotFoundError):
            descriptor = os.open(path, _OPEN_FLAGS)
            _lock(descriptor)
            if path.is_dir():
                return path, descriptor
            os.close(descriptor)


def _lock(descriptor: int, flags: int = 0) -> bool:
    """Lock a directory; say whether that went well. Without locks nothing is ever taken for a leftover."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        return False
    return True
