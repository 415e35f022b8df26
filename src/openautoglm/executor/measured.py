"""Measures what a loaded executor and the processes around it really take, for the receipt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from openautoglm.executor.native import NativeExecutor
from openautoglm.log import get_logger
from openautoglm.planner.receipt import MeasuredMemory
from openautoglm.probe.page_cache import cached_bytes
from openautoglm.probe.process_memory import measure_process_memory, peak_resident_bytes
from openautoglm.spec.plan import Component, Part

_logger = get_logger(__name__)


def measured_memory(
    executor: NativeExecutor,
    runtime_bytes: int,
    *,
    tree: int | None = None,
    checkpoint_files: Sequence[Path] = (),
    tier_bytes: int = 0,
) -> MeasuredMemory:
    """Return what the executor took and what the process tree under `tree` (default: this process) takes now.

    `runtime_bytes` is the tree's proportional set size before loading. The peak is this process's own, with the others
    of the tree as they are now: they do not grow while a model loads. `checkpoint_files` and the file of packed weights
    are looked up on disk and in the page cache. `tier_bytes` are set aside for spilled KV cache; nothing is there yet.
    """
    here = os.getpid()
    own_bytes = measure_process_memory(here).pss_bytes
    tree_bytes = own_bytes if tree is None else measure_process_memory(tree).pss_bytes
    return MeasuredMemory(
        weight_bytes=executor.weight_bytes,
        ring_bytes=executor.ring_bytes,
        direct_reads=executor.direct_reads,
        kv_bytes=executor.kv_bytes,
        workspace_bytes=executor.workspace_bytes,
        runtime_bytes=runtime_bytes,
        untouched_bytes=executor.untouched_bytes + tier_bytes,
        tier_bytes=tier_bytes,
        resident_bytes=tree_bytes,
        peak_bytes=peak_resident_bytes(here) + tree_bytes - own_bytes,
        parts=(*executor.parts(), *_file_parts(checkpoint_files, executor.packed_file)),
    )


def _file_parts(checkpoint_files: Sequence[Path], packed_file: Path | None) -> Iterator[Part]:
    for name, files in (
        ("checkpoint", checkpoint_files),
        # A file that is kept for this process alone has no name any more.
        ("packed weights", (packed_file,) if packed_file is not None and packed_file.exists() else ()),
    ):
        if not files:
            continue
        try:
            cached = sum(cached_bytes(file) for file in files)
            on_disk = sum(file.stat().st_size for file in files)
        except OSError as error:
            _logger.warning("what the page cache holds of the %s is not known: %s", name, error)
            continue
        yield Part(component=Component.PAGE_CACHE, name=name, num_bytes=cached)
        yield Part(component=Component.DISK, name=name, num_bytes=on_disk)
