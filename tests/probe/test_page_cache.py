"""What of a file is in the page cache: both ways of asking agree, and both see what was dropped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from openautoglm.probe import page_cache
from openautoglm.probe.page_cache import cached_bytes

NUM_PAGES = 300


@pytest.fixture(params=["cachestat", "mincore"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mincore":
        monkeypatch.setattr(page_cache, "_CACHESTAT", -1)  # no such call
    return str(request.param)


def read_pages(path: Path, first: int, count: int) -> None:
    """Have exactly these pages of a file in the page cache, if the file system lets us choose."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, count * mmap.PAGESIZE, first * mmap.PAGESIZE)
    finally:
        os.close(descriptor)


@pytest.mark.usefixtures("asked")
def test_what_was_just_written_is_there(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for num_bytes in (0, 1, mmap.PAGESIZE, NUM_PAGES * mmap.PAGESIZE - 5):
        path.write_bytes(b"x" * num_bytes)
        assert cached_bytes(path) == num_bytes


def test_both_ways_see_what_was_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * NUM_PAGES * mmap.PAGESIZE)
    read_pages(path, 100, 60)
    counted = cached_bytes(path)
    monkeypatch.setattr(page_cache, "_CACHESTAT", -1)
    assert cached_bytes(path) == counted
    assert counted >= 60 * mmap.PAGESIZE


@pytest.mark.usefixtures("asked")
def test_a_file_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cached_bytes(tmp_path / "none")
