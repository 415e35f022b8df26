"""Packed files of made-up weights, for the tests of the prepacked cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from openautoglm.checkpoint.packed import PackedCache
from openautoglm.checkpoint.packed_format import PackedLayout
from openautoglm.checkpoint.packed_writer import PackedWriter
from openautoglm.executor.protocol import Float32
from openautoglm.native import _core

SLICE_BYTES = 4096
VECTOR_ELEMENTS = (5, 1, 64)
DIGEST = bytes(range(16))

read_checked = partial(_core.read_checked, _core.ThreadPool(2, pin=False))


def make_layout(name: int = 0, *, num_slices: float = 3.5, num_matrices: int = 1) -> PackedLayout:
    return PackedLayout(
        key=bytes([name + 1]) * 32,
        vector_elements=VECTOR_ELEMENTS,
        matrix_bytes=(int(num_slices * SLICE_BYTES),) * num_matrices,
        slice_bytes=SLICE_BYTES,
    )


def make_arena(layout: PackedLayout) -> np.ndarray:
    return np.random.default_rng(layout.key[0]).integers(0, 256, layout.arena_bytes, dtype=np.uint8)


def make_vectors(layout: PackedLayout) -> list[Float32]:
    generator = np.random.default_rng(layout.key[0])
    return [generator.standard_normal(size).astype(np.float32) for size in layout.vector_elements]


def make_cache(directory: Path, **settings: int) -> PackedCache:
    return PackedCache(directory=directory, **{"spare_disk_bytes": 0, "min_source_bytes": 0, **settings})


def begin(layout: PackedLayout, writer: PackedWriter) -> None:
    """Hand the matrices of a layout to a writer."""
    for matrix in split(layout, make_arena(layout)):
        writer.add_matrix(matrix)


def publish(cache: PackedCache, layout: PackedLayout, writer: PackedWriter, source: Path | str = "") -> bool:
    begin(layout, writer)
    return cache.publish(writer, make_vectors(layout), weights_digest=DIGEST, source=str(source), on_wait=lambda: None)


def write(cache: PackedCache, layout: PackedLayout, source: Path | str = "") -> Path:
    """Write a layout's file and return its path."""
    with cache.writer(layout) as writer:
        assert writer is not None
        assert publish(cache, layout, writer, source)
    return cache.path(layout)


def split(layout: PackedLayout, arena: np.ndarray) -> list[memoryview]:
    """Return the part of each matrix in an arena."""
    ends = np.cumsum(layout.matrix_bytes)
    return [arena[end - size : end].data for size, end in zip(layout.matrix_bytes, ends, strict=True)]


def read(cache: PackedCache, layout: PackedLayout, *, keep_pages: bool = True) -> tuple[np.ndarray, list[Float32]]:
    """Read a layout's file whole; raise what the reader raises."""
    reader = cache.open(layout)
    assert reader is not None
    target = np.zeros(layout.arena_bytes, dtype=np.uint8)
    heard: list[int] = []
    with reader:
        assert reader.check().weights_digest == DIGEST
        vectors = reader.read_vectors()
        reader.read_matrices(
            split(layout, target), read_checked=read_checked, keep_pages=keep_pages, on_bytes=heard.append
        )
    assert sum(heard) == layout.arena_bytes
    return target, vectors


def is_whole(cache: PackedCache, layout: PackedLayout) -> bool:
    arena, vectors = read(cache, layout)
    expected = make_vectors(layout)
    return arena.tobytes() == make_arena(layout).tobytes() and all(map(np.array_equal, vectors, expected))
