"""What the runtime around a model takes, from what stands beside its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from openautoglm.checkpoint.hub_cache import TOKENIZER_FILE, cached_snapshot, demo_directory
from openautoglm.checkpoint.reference import ModelReference
from openautoglm.checkpoint.tensors import TensorInfo
from openautoglm.memory.runtime import RuntimeNeeds, estimated_tokenizer
from openautoglm.probe.tokenizer_file import probe_tokenizer
from openautoglm.spec.arch import ArchSpec


def runtime_needs(
    spec: ArchSpec,
    reference: ModelReference,
    headers: Mapping[str, TensorInfo] | None,
    *,
    server: bool = False,
    packed_cache: bool = True,
) -> RuntimeNeeds:
    """Return the needs of a model: its own tokenizer's where that is on this machine, else as published ones have.

    `headers` are the checkpoint's tensors, where they are known. `server` adds the HTTP process beside the engine's.
    `packed_cache`: a load may keep packed weights on disk. Downloads nothing.
    """
    wide = any(tensor.dtype == "F32" for tensor in (headers or {}).values() if len(tensor.shape) > 1)
    directory = _directory(reference)
    if directory is not None and (directory / TOKENIZER_FILE).is_file():
        tokenizer = probe_tokenizer(directory / TOKENIZER_FILE, spec.vocab_size)
    else:
        tokenizer = estimated_tokenizer(spec.vocab_size)
    return RuntimeNeeds(
        tokenizer=tokenizer,
        server=server,
        source_item_bytes=4 if wide else 2,
        source_bytes=None if headers is None else _file_bytes(headers.values()),
        packed_cache=packed_cache,
    )


def _file_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Return the bytes of the files that hold these tensors: each ends with its last tensor."""
    ends: dict[Path, int] = {}
    for tensor in tensors:
        ends[tensor.file] = max(tensor.end, ends.get(tensor.file, 0))
    return sum(ends.values())


def _directory(reference: ModelReference) -> Path | None:
    if reference.demo:
        return demo_directory()
    return cached_snapshot(reference) if reference.path is None else reference.path
