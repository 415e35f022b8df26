"""The prepacked cache's part in a load: restore what an earlier load packed, or record what this one packs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.checkpoint.packed_format import PackedFileError, PackedLayout
from openautoglm.checkpoint.packed_key import packed_key
from openautoglm.checkpoint.packed_reader import PackedReader
from openautoglm.checkpoint.packed_writer import PackedWriter
from openautoglm.errors import CheckpointFormatError
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
_MAX_READERS = 8  # more threads than this do not read faster from any disk or page cache seen

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredWeights:
    """What stood beside the arena: the vectors in the weight map's order, and the digest of the checkpoint's bytes."""

    vectors: tuple[Float32, ...]
    weights_digest: bytes


def worth_caching(cache: PackedCache | None, formats: ModelFormats, source_bytes: int) -> TypeGuard[PackedCache]:
    """Say whether a load of `source_bytes` is one for the cache."""
    return cache is not None and worth_packing(formats, source_bytes, cache.min_source_bytes)


class PackedLoad:
    """One load and its entry in the cache. `matrices` are the shapes that `store` was made of."""

    def __init__(
        self,
        cache: PackedCache,
        checkpoint: Checkpoint,
        weights: WeightMap,
        matrices: Sequence[tuple[int, int, int, int]],
        store: _core.WeightStore,
    ) -> None:
        self._cache = cache
        self._checkpoint = checkpoint
        self._weights = weights
        self._matrices = tuple(matrices)
        self._store = store
        self._layout = PackedLayout(
            key=self._key(),
            vector_elements=tuple(sum(part.num_rows for part in vector.parts) for vector in weights.vectors),
            arena_bytes=store.packed_bytes,
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

        reader.read_arena(
            self._store.arena().data,
            num_threads=min(plan.num_threads, _MAX_READERS),
            keep_pages=_spacious(plan, self._layout.file_bytes),
            on_bytes=on_bytes,
        )
        _LOGGER.info("packed weights of %s read from %s", self._checkpoint.directory, reader.path)
        return RestoredWeights(vectors=tuple(vectors), weights_digest=header.weights_digest)

    @contextmanager
    def record(self) -> Iterator[PackedWriter | None]:
        """Yield what writes the store to the cache while it is filled; None where it cannot be written."""
        with self._cache.writer(self._layout, self._store.arena().data) as writer:
            yield writer

    def publish(
        self,
        writer: PackedWriter,
        vectors: Sequence[Float32],
        weights_digest: bytes,
        news: Progress,
        progress: ProgressCallback | None,
    ) -> bool:
        """Complete the file and give it its name, unless the checkpoint has changed since the load began.

        Returns whether it stands there. Repeats `news` while the disk is waited for, so that whoever watches the load
        sees that it lives.
        """
        if not self._unchanged():
            self._tell(
                NoticeCode.PACKED_CACHE_NOT_WRITTEN,
                f"{self._checkpoint.directory} changed while it was loaded: nothing is cached",
            )
            return False

        def on_wait() -> None:
            if progress is not None:
                progress(news)

        return self._cache.publish(
            writer,
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


def _spacious(plan: Plan, file_bytes: int) -> bool:
    """Say whether all that the plan will take, and the file's pages beside it, fit into what is available now.

    Then the pages stay in the page cache, where the next start finds them; else they are dropped behind the reading,
    as those of checkpoints are.
    """
    return probe_memory().available_bytes >= plan.breakdown.peak_bytes + file_bytes
