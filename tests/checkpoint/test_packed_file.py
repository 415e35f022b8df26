"""Packed files: what was written comes back, and nothing that is damaged, foreign or forged does."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openautoglm.checkpoint import packed_reader
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.checkpoint.packed_format import PackedFileError, PackedLayout, read_source
from tests.checkpoint.packed_files import (
    DIGEST,
    VECTOR_ELEMENTS,
    is_whole,
    make_cache,
    make_layout,
    read,
    read_checked,
    write,
)

# Where the fixed fields stand, written down anew from the format's description.
FIELDS = {
    "magic": (0, 8),
    "version": (8, 4),
    "header_bytes": (12, 4),
    "key": (16, 32),
    "file_bytes": (48, 8),
    "arena_begin": (56, 8),
    "arena_bytes": (64, 8),
    "slice_bytes": (72, 4),
    "num_slices": (76, 4),
    "num_vectors": (80, 4),
    "vector_elements": (1124, 8 * len(VECTOR_ELEMENTS)),
}
CHECKSUMS_BEGIN = 1124 + 8 * len(VECTOR_ELEMENTS)


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return make_cache(tmp_path / "deep" / "cache")


@pytest.fixture
def layout() -> PackedLayout:
    return make_layout()


def forge(path: Path, layout: PackedLayout, begin: int, data: bytes) -> None:
    """Write `data` into the header and put its digest right, as somebody who means harm would."""
    content = bytearray(path.read_bytes())
    content[begin : begin + len(data)] = data
    body_bytes = layout.header_bytes - 32
    content[body_bytes : layout.header_bytes] = hashlib.blake2b(content[:body_bytes], digest_size=32).digest()
    path.write_bytes(content)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << (position % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("keep_pages", [True, False])
@pytest.mark.parametrize("num_slices", [0.001, 1, 3, 3.5])
def test_what_was_written_comes_back(cache: PackedCache, num_slices: float, keep_pages: bool) -> None:
    layout = make_layout(num_slices=num_slices)
    path = write(cache, layout, "/some/model")
    assert is_whole(cache, layout)
    read(cache, layout, keep_pages=keep_pages)
    assert path.stat().st_size == layout.file_bytes
    assert read_source(path.read_bytes()) == "/some/model"
    assert [entry.name for entry in cache.directory.iterdir()] == [f"{layout.key.hex()}.packed"]


def test_files_are_private(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


def test_there_is_nothing_before_the_first_write(cache: PackedCache, layout: PackedLayout) -> None:
    assert cache.open(layout) is None
    assert not cache.directory.exists()
    assert cache.usage() == (0, 0)


def test_every_flipped_header_byte_is_noticed(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    for position in range(layout.header_bytes):
        flip(path, position)
        with pytest.raises(PackedFileError):
            read(cache, layout)
        flip(path, position)
    assert is_whole(cache, layout)


@pytest.mark.parametrize("name", FIELDS)
def test_a_forged_field_is_refused(cache: PackedCache, layout: PackedLayout, name: str) -> None:
    path = write(cache, layout)
    begin, num_bytes = FIELDS[name]
    good = path.read_bytes()
    generator = np.random.default_rng(begin)
    for value in (b"\0" * num_bytes, b"\xff" * num_bytes, generator.bytes(num_bytes)):
        assert value != good[begin : begin + num_bytes]
        forge(path, layout, begin, value)
        with pytest.raises(PackedFileError):
            read(cache, layout)
        path.write_bytes(good)
    assert is_whole(cache, layout)


def test_forged_checksums_are_noticed_while_reading(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    for index in range(1 + layout.num_slices):
        good = path.read_bytes()
        begin = CHECKSUMS_BEGIN + 4 * index
        (checksum,) = struct.unpack_from("<I", good, begin)
        forge(path, layout, begin, struct.pack("<I", checksum ^ 1))
        with pytest.raises(PackedFileError, match="slice" if index else "vectors"):
            read(cache, layout)
        path.write_bytes(good)


def test_a_flipped_byte_of_the_data_is_noticed(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    begins = [layout.vectors_begin, *(layout.arena_begin + piece.begin for piece in layout.slices())]
    for position in [*begins, layout.vectors_begin + layout.vectors_bytes - 1, layout.file_bytes - 1]:
        flip(path, position)
        with pytest.raises(PackedFileError, match="checksum"):
            read(cache, layout)
        flip(path, position)
    assert is_whole(cache, layout)


def test_files_of_another_length_are_refused(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    content = path.read_bytes()
    for length in (0, 1, 100, layout.header_bytes, layout.arena_begin, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(PackedFileError):
            read(cache, layout)
    path.write_bytes(content + b"\0")
    with pytest.raises(PackedFileError):
        read(cache, layout)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    reader = cache.open(layout)
    assert reader is not None
    with reader:
        reader.check()
        os.truncate(path, layout.arena_begin + 10)
        target = bytearray(layout.arena_bytes)
        with pytest.raises(PackedFileError, match="truncated"):
            reader.read_matrices(
                [memoryview(target)], read_checked=read_checked, keep_pages=True, on_bytes=lambda _: None
            )


def test_noise_is_refused(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(layout.file_bytes))
        with pytest.raises(PackedFileError):
            read(cache, layout)


def test_a_file_under_another_name_is_refused(cache: PackedCache, layout: PackedLayout) -> None:
    other = make_layout(1)
    write(cache, layout).rename(cache.path(other))
    with pytest.raises(PackedFileError, match="another checkpoint"):
        read(cache, other)
    wider = replace(layout, key=other.key, vector_elements=(6, 0, 64))
    with pytest.raises(PackedFileError):
        read(cache, wider)


def test_what_others_may_write_is_refused(
    cache: PackedCache, layout: PackedLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(cache, layout)
    path.chmod(0o620)
    with pytest.raises(PackedFileError, match="trusted"):
        cache.open(layout)
    path.chmod(0o600)
    owner = os.geteuid()
    monkeypatch.setattr(packed_reader.os, "geteuid", lambda: owner + 1)
    with pytest.raises(PackedFileError, match="trusted"):
        cache.open(layout)


def test_links_and_pipes_are_refused(cache: PackedCache, layout: PackedLayout) -> None:
    path = write(cache, layout)
    kept = path.rename(path.with_name("elsewhere"))
    path.symlink_to(kept)
    with pytest.raises(OSError, match="symbolic"):
        cache.open(layout)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PackedFileError, match="regular"):
        cache.open(layout)


def test_the_digest_of_the_weights_comes_back(cache: PackedCache, layout: PackedLayout) -> None:
    write(cache, layout, "x" * 2000)
    reader = cache.open(layout)
    assert reader is not None
    with reader:
        header = reader.check()
    assert header.weights_digest == DIGEST
    assert header.source == ""  # too long for its field
