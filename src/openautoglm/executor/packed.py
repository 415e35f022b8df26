"""The prepacked cache's part in a load: restore what an earlier load packed, or record what this one packs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import numpy as np

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.checkpoint.packed_format import PackedFileError, PackedHeader, PackedLayout
from openautoglm.checkpoint.packed_key import packed_key
from openautoglm.checkpoint.packed_reader import PackedReader
from openautoglm.checkpoint.packed_writer import PackedWriter
from openautoglm.errors import CheckpointFormatError, WeightReadError
from openautoglm.executor.protocol import Float32
from openautoglm.log import get_logger
from openautoglm.memory.loading import worth_packing
from openautoglm.native import _core
from openautoglm.probe.memory import probe_memory
from openautoglm.progress import Progress, ProgressCallback
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.notices import NoticeCode
from openautoglm.spec.plan import Plan
from openautoglm.spec.weights import WeightMap

LOAD_STAGE = "load"

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredWeights:
    """What stood beside the arena: the vectors in the weight map's order, and the digest of the checkpoint's bytes."""

    vectors: tuple[Float32, ...]
    weights_digest: bytes


def worth_caching(cache: PackedCache | None, formats: ModelFormats, source_bytes: int) -> TypeGuard[PackedCache]:
    """Say whether a load of `source_bytes` is one for the cache."""
    return cache is not None and worth_packing(formats, source_bytes, cache.min_source_bytes)


class PackedRecord:
    """The file of a load that packs. `targets` are where the matrices that stay in memory live."""

    def __init__(self, cache: PackedCache, writer: PackedWriter, targets: Sequence[memoryview | None]) -> None:
        self._cache = cache
        self._targets = targets
        self.writer = writer

    def add(self, index: int, staged: memoryview | None, on_wait: Callable[[], None]) -> None:
        """Write matrix `index` meanwhile; one that was `staged` is on the disk when this returns.

        Raises `OutOfMemoryError` or `ConfigError` for a staged one that the disk would not have.
        """
        target = self._targets[index] if staged is None else staged
        assert target is not None
        self.writer.add_matrix(target)
        if staged is not None:
            self._cache.wait_written(self.writer, on_wait)


class PackedLoad:
    """One load and its entry in the cache. `matrices` are the shapes that `store` was made of, `on_disk` says which of
    them stay in the file; `pool` reads it."""

    def __init__(
        self,
        cache: PackedCache,
        checkpoint: Checkpoint,
        weights: WeightMap,
        matrices: Sequence[tuple[int, int, int, int]],
        pool: _core.ThreadPool,
        store: _core.WeightStore,
        on_disk: Sequence[bool],
    ) -> None:
        self._cache = cache
        self._checkpoint = checkpoint
        self._weights = weights
        self._matrices = tuple(matrices)
        self._pool = pool
        self._store = store
        self._on_disk = tuple(on_disk)
        self._layout = PackedLayout(
            key=self._key(),
            vector_elements=tuple(sum(part.num_rows for part in vector.parts) for vector in weights.vectors),
            matrix_bytes=tuple(store.matrix_bytes(index) for index in range(len(matrices))),
        )

    @property
    def path(self) -> Path:
        """Where the entry stands, whether it exists or not."""
        return self._cache.path(self._layout)

    def restore(self, plan: Plan, progress: ProgressCallback | None) -> RestoredWeights | None:
        """Fill the store from the cache; return None, the store as it was, if there is nothing usable.

        A damaged file is removed with a warning. Allocates the vectors and nothing else.
        """
        path = self.path
        try:
            reader = self._cache.open(self._layout)
        except (OSError, PackedFileError) as error:
            self._tell(NoticeCode.PACKED_CACHE_UNUSED, f"{path} is not used: {error}; the checkpoint is read instead")
            return None
        if reader is None:
            return None
        with reader:
            try:
                return self._read(reader, plan, progress)
            except (OSError, PackedFileError) as error:
                damage = str(error)
            self._cache.discard(reader)
        # It has gone before this is told: a strict load that ends here finds a sound cache the next time.
        self._tell(
            NoticeCode.PACKED_CACHE_DAMAGED, f"{path} was damaged and went: {damage}; the checkpoint is read instead"
        )
        self._store.arena()[:] = 0  # packing leaves the padding of tiles as it finds it
        return None

    def _read(self, reader: PackedReader, plan: Plan, progress: ProgressCallback | None) -> RestoredWeights:
        header = reader.check()
        vectors = reader.read_vectors()
        done_bytes = 0

        def on_bytes(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            if progress is not None:
                progress(Progress(stage=LOAD_STAGE, done_bytes=done_bytes, total_bytes=self._layout.arena_bytes))

        reader.read_matrices(
            self._targets(),
            read_checked=partial(_core.read_checked, self._pool),
            keep_pages=_spacious(plan, self._layout.file_bytes),
            on_bytes=on_bytes,
        )
        _LOGGER.info("packed weights of %s read from %s", self._checkpoint.directory, reader.path)
        return RestoredWeights(vectors=tuple(vectors), weights_digest=header.weights_digest)

    def _targets(self) -> list[memoryview | None]:
        """Return where each matrix lives in memory; None for those that stay on disk."""
        arena, end = self._store.arena().data, 0
        targets: list[memoryview | None] = []
        for on_disk, num_bytes in zip(self._on_disk, self._layout.matrix_bytes, strict=True):
            targets.append(None if on_disk else arena[end : end + num_bytes])
            end += 0 if on_disk else num_bytes
        return targets

    @contextmanager
    def record(self) -> Iterator[PackedRecord | None]:
        """Yield what writes the matrices to the cache as they are packed; None where they cannot be written."""
        with self._cache.writer(self._layout) as writer:
            yield None if writer is None else PackedRecord(self._cache, writer, self._targets())

    def open_stream(self, num_readers: int) -> bool:
        """Read the matrices on disk from the file from now on; return whether reads go past the page cache.

        Raises `WeightReadError` if the file that was just read or written is not there any more.
        """
        path = self._cache.path(self._layout)
        try:
            with self._cache.open(self._layout) or _gone() as reader:
                header = reader.check()
                descriptor, direct = reader.open_direct()
        except (OSError, PackedFileError) as error:
            raise WeightReadError(
                f"{path}, where weights stay, cannot be read: {error}: load the model again"
            ) from error
        self._store.open_stream(
            descriptor, direct, str(path), num_readers, self._layout.slice_bytes, self._streamed(header)
        )
        if not direct:
            self._tell(
                NoticeCode.DISK_READS_BUFFERED,
                f"the file system of {path.parent} has no direct reads: weights on disk are read through the page "
                "cache and dropped behind each read, which is slower",
            )
        return direct

    def _streamed(self, header: PackedHeader) -> list[tuple[int, int, list[int]]]:
        """Return position, bytes and checksums of each matrix on disk."""
        checksums: dict[int, list[int]] = {}
        begins: dict[int, int] = {}
        for piece, checksum in zip(self._layout.slices(), header.slice_checksums, strict=True):
            checksums.setdefault(piece.matrix, []).append(checksum)
            begins.setdefault(piece.matrix, self._layout.arena_begin + piece.begin)
        return [
            (begins[index], self._layout.matrix_bytes[index], checksums[index])
            for index, on_disk in enumerate(self._on_disk)
            if on_disk
        ]

    def publish(
        self,
        record: PackedRecord,
        vectors: Sequence[Float32],
        weights_digest: bytes,
        news: Progress,
        progress: ProgressCallback | None,
    ) -> bool:
        """Complete the file and give it its name, unless the checkpoint has changed since the load began.

        Returns whether it stands there. Repeats `news` while the disk is waited for, so that whoever watches the load
        sees that it lives. Raises `CheckpointFormatError` for such a change where the file is required.
        """
        if not self._unchanged():
            if self._cache.required:
                raise CheckpointFormatError(f"{self._checkpoint.directory} changed while it was loaded: load it again")
            self._tell(
                NoticeCode.PACKED_CACHE_NOT_WRITTEN,
                f"{self._checkpoint.directory} changed while it was loaded: nothing is cached",
            )
            return False

        def on_wait() -> None:
            if progress is not None:
                progress(news)

        return self._cache.publish(
            record.writer,
            [np.ascontiguousarray(vector) for vector in vectors],
            weights_digest=weights_digest,
            source=str(self._checkpoint.directory.resolve()),
            on_wait=on_wait,
        )

    def _tell(self, code: NoticeCode, message: str) -> None:
        self._cache.notices.add(code, message)

    def _unchanged(self) -> bool:
        try:
            return self._key() == self._layout.key
        except CheckpointFormatError as error:
            _LOGGER.warning("%s", error)
            return False

    def _key(self) -> bytes:
        return packed_key(self._checkpoint, self._weights, self._matrices)


def _gone() -> PackedReader:
    raise PackedFileError("it is gone")


def _spacious(plan: Plan, file_bytes: int) -> bool:
    """Say whether all that the plan will take, and the file's pages beside it, fit into what is available now.

    Then the pages stay in the page cache, where the next start finds them; else they are dropped behind the reading,
    as those of checkpoints are.
    """
    return probe_memory().available_bytes >= plan.breakdown.peak_bytes + file_bytes
