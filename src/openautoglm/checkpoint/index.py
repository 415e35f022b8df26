"""`Checkpoint`: a directory of safetensors files, one or sharded by model.safetensors.index.json, as named tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from openautoglm.checkpoint.files import quoted, read_small_file
from openautoglm.checkpoint.json_files import JsonLimits, parse_json_object
from openautoglm.checkpoint.safetensors import SLICE_BYTES, SafetensorsFile
from openautoglm.checkpoint.tensors import READABLE_DTYPES, TensorInfo
from openautoglm.errors import (
    CheckpointError,
    CheckpointFormatError,
    MissingTensorError,
    UnexpectedTensorError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.safetensors", re.ASCII)
MAX_SHARDS = 10_000
MAX_INDEXED_TENSORS = 1_000_000
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")

_INDEX_LIMITS = JsonLimits(max_bytes=200_000_000, max_depth=4, max_structure=2 * MAX_INDEXED_TENSORS)


def parse_index(data: bytes, *, source: str) -> dict[str, str]:
    """Return weight_map, tensor name to shard name, of a hostile index; shard names are plain names, never paths."""
    weight_map = parse_json_object(data, source=source, limits=_INDEX_LIMITS).get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_INDEXED_TENSORS:
        raise CheckpointFormatError(
            f"{source}: weight_map must be an object of 1 to {MAX_INDEXED_TENSORS} tensor names; download it again"
        )
    checked: dict[str, str] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise CheckpointFormatError(
                f"{source}: tensor {quoted(name)} is said to be in {quoted(shard)}: expected the plain name of a "
                ".safetensors file beside the index; do not trust this checkpoint, or download it again"
            )
        checked[name] = shard
    if len(set(checked.values())) > MAX_SHARDS:
        raise CheckpointFormatError(f"{source}: more than {MAX_SHARDS} shards; download it again")
    return checked


def find_weights(directory: Path) -> dict[str, str] | None:
    """Return the index's weight_map, or None for a single model.safetensors; raise what is wrong if there is neither.

    Raises `CheckpointError` if there are no weights, `CheckpointFormatError` if only pickles are there (they are never
    loaded: they run code), or if a single file and shards contradict each other.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory: a checkpoint is a directory with {SINGLE_FILE}")
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if index.exists() or index.is_symlink():
        weight_map = parse_index(read_small_file(index, max_bytes=_INDEX_LIMITS.max_bytes), source=str(index))
        if single.exists() and SINGLE_FILE not in weight_map.values():
            raise CheckpointFormatError(
                f"{directory} holds {SINGLE_FILE} and an index of other shards: one of them is stale; remove it"
            )
        return weight_map
    if single.exists() or single.is_symlink():
        return None
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointFormatError(
            f"{directory} has its weights only as {pickles[0]}: pickled weights can run code and are never loaded; "
            "get the model's safetensors files, or convert them on a machine you can lose"
        )
    raise CheckpointError(
        f"{directory} has no weights: expected {SINGLE_FILE}, or {INDEX_FILE} with its shards; download the model again"
    )


class Checkpoint:
    """The tensors of a checkpoint directory, headers checked, bytes read on demand.

    `tensors` maps every name to its `TensorInfo`, `files` every path to its open file; `total_bytes` is the sum of
    the tensors' bytes on disk. Reading is by position and may be shared by threads. Use it in a `with` block, or close
    it.
    """

    def __init__(self, directory: Path, files: Mapping[Path, SafetensorsFile]) -> None:
        self.directory = directory
        self.files: Mapping[Path, SafetensorsFile] = MappingProxyType(dict(files))
        tensors = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self.total_bytes = sum(tensor.num_bytes for tensor in tensors.values())

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open every file of a checkpoint and check its header; no weights are read.

        Raises `CheckpointError` (no weights), `CheckpointFormatError` (bytes that break the format's rules, pickles),
        `MissingTensorError` and `UnexpectedTensorError` (index and shards contradict each other).
        """
        weight_map = find_weights(directory)
        names = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
        with ExitStack() as stack:
            files = {directory / name: stack.enter_context(SafetensorsFile.open(directory / name)) for name in names}
            if weight_map is not None:
                check_index(directory / INDEX_FILE, weight_map, [file.tensors for file in files.values()])
            stack.pop_all()
        return cls(directory, files)

    def read_rows(self, name: str, row_begin: int, row_end: int) -> Rows:
        """Read rows [row_begin, row_end) of a tensor: shape [row_end - row_begin, *shape[1:]], C order.

        Returns float32 (F32), float16 (F16), or uint16 holding bfloat16 bits (BF16). For 1-D tensors rows are elements;
        a scalar is one row. Allocates the result and nothing else, so its size is the caller's choice; the source is
        read in slices of at most 64 MiB whose pages are dropped behind.

        Raises `MissingTensorError` for an unknown name, `UnsupportedModelError` for a number format that cannot be
        read, `CheckpointFormatError` if the file has changed or the disk fails.
        """
        import numpy as np

        tensor = self._tensor(name)
        if tensor.dtype not in READABLE_DTYPES:
            raise UnsupportedModelError(
                f"{tensor.file}: tensor {quoted(name)} is stored as {tensor.dtype}, which cannot be read: expected "
                f"{', '.join(READABLE_DTYPES)}; use the unquantised version of this model",
                features=(f"weights stored as {tensor.dtype}",),
            )
        if not 0 <= row_begin <= row_end <= tensor.num_rows:
            raise ValueError(f"rows [{row_begin}, {row_end}) of {name}, which has {tensor.num_rows}")
        rows: Rows = np.empty((row_end - row_begin, *tensor.shape[1:]), dtype=READABLE_DTYPES[tensor.dtype])
        if rows.size:
            begin = tensor.begin + row_begin * tensor.row_bytes
            self.files[tensor.file].read_into(rows.reshape(-1).view(np.uint8).data, begin)
        return rows

    def rows_per_slice(self, name: str) -> int:
        """Return how many rows of a tensor fit a slice of 64 MiB (at least 1)."""
        return max(1, SLICE_BYTES // max(1, self._tensor(name).row_bytes))

    def release(self, name: str) -> None:
        """Drop what the page cache holds of a tensor; the next read comes from the disk."""
        tensor = self._tensor(name)
        self.files[tensor.file].release(tensor.begin, tensor.end)

    def close(self) -> None:
        """Close every file; safe to call twice."""
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Checkpoint:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _tensor(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError as error:
            raise MissingTensorError(
                f"{self.directory} has no tensor {quoted(name)}: it does not fit its config.json; download it again"
            ) from error


def check_index(index: Path, weight_map: Mapping[str, str], shards: list[Mapping[str, TensorInfo]]) -> None:
    """Check that every tensor stands in exactly the shard that the index names, and every shard's tensor is indexed."""
    seen: dict[str, str] = {}
    for shard in shards:
        for name, tensor in shard.items():
            if name in seen:
                raise CheckpointFormatError(
                    f"{tensor.file}: tensor {quoted(name)} is also in {seen[name]}; download the model again"
                )
            seen[name] = tensor.file.name
            if name not in weight_map:
                raise UnexpectedTensorError(
                    f"{tensor.file}: tensor {quoted(name)} is not in {index.name}: index and shards do not belong "
                    "together; download the model again"
                )
    for name, shard_name in weight_map.items():
        if seen.get(name) != shard_name:
            raise MissingTensorError(
                f"{index}: tensor {quoted(name)} is said to be in {shard_name} but is not there: index and shards do "
                "not belong together; download the model again"
            )
