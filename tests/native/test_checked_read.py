"""Slices that are read and checked natively: zlib is the oracle of the checksums, the file of the bytes."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from openautoglm.native import _core

PIECE_BYTES = 256 << 10


@pytest.fixture
def pool() -> _core.ThreadPool:
    return _core.ThreadPool(2, pin=False)


def check(pool: _core.ThreadPool, path: Path, slices: list[tuple[int, memoryview | None, int, int, bool]]):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _core.read_checked(pool, descriptor, slices)
    finally:
        os.close(descriptor)


# Around the tables' words, the lanes and what is folded at once, and around a piece.
LENGTHS = [*range(1, 200), 255, 256, 257, 4095, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 77]


@pytest.mark.parametrize("begin", [0, 3])
def test_checksums_are_those_of_zlib_at_every_length(pool: _core.ThreadPool, tmp_path: Path, begin: int) -> None:
    data = np.random.default_rng(7).bytes(begin + max(LENGTHS))
    path = tmp_path / "data"
    path.write_bytes(data)
    targets = [bytearray(length) for length in LENGTHS]
    slices = [
        (begin, memoryview(target), len(target), zlib.crc32(data[begin : begin + len(target)]), False)
        for target in targets
    ]
    assert check(pool, path, slices) == (-1, -1)
    assert all(target == data[begin : begin + len(target)] for target in targets)
    assert check(pool, path, [(at, None, length, checksum, True) for at, _, length, checksum, _ in slices]) == (-1, -1)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, PIECE_BYTES + 5])
@pytest.mark.parametrize("kept", [True, False])
def test_every_flipped_bit_is_noticed(pool: _core.ThreadPool, tmp_path: Path, length: int, kept: bool) -> None:
    data = bytearray(np.random.default_rng(length).bytes(length))
    checksum = zlib.crc32(data)
    path = tmp_path / "data"
    for position in sorted({0, length // 2, length - 1}):
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        data[position] ^= 1 << (position % 8)
        target = memoryview(bytearray(length)) if kept else None
        assert check(pool, path, [(0, target, length, checksum, False)]) == (0, -1)


def test_the_slice_that_is_bad_is_named(pool: _core.ThreadPool, tmp_path: Path) -> None:
    data = bytes(range(250)) * 40
    path = tmp_path / "data"
    path.write_bytes(data)
    good = zlib.crc32(data[:1000])
    slices = [(1000 * index, None, 1000, good ^ (index == 7), False) for index in range(10)]
    assert check(pool, path, slices) == (7, -1)


def test_a_file_that_ends_early_is_said_so(pool: _core.ThreadPool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 1000)
    assert check(pool, path, [(500, None, 600, 0, False)]) == (0, 1000)


def test_what_the_system_refuses_is_its_error(pool: _core.ThreadPool, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        check(pool, tmp_path, [(0, None, 1, 0, False)])


def test_targets_of_another_size_are_refused(pool: _core.ThreadPool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="target"):
        check(pool, path, [(0, memoryview(bytearray(999)), 1000, 0, False)])
