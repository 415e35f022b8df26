"""Making safetensors files by hand, so that every rule of the format can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def entry(dtype: str, shape: list[object], begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header: object, data: bytes = b"") -> bytes:
    """Return a file with this header: an object to write as JSON, or the text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_single(directory: Path, header: object, data: bytes = b"") -> None:
    (directory / "model.safetensors").write_bytes(file_bytes(header, data))


def write_sharded(directory: Path, **weight_map: str) -> None:
    """Two shards, a and b in the first, c and d in the second; `weight_map` changes the index (None removes)."""
    for shard, names in zip(SHARDS, (("a", "b"), ("c", "d")), strict=True):
        save_file({name: np.full((2, 3), ord(name), dtype=np.float32) for name in names}, directory / shard)
    good = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1], "d": SHARDS[1]}
    merged = {name: shard for name, shard in (good | weight_map).items() if shard is not None}
    write_index(directory, {"metadata": {"total_size": 96}, "weight_map": merged})


def write_index(directory: Path, index: object) -> None:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    (directory / "model.safetensors.index.json").write_bytes(text)
