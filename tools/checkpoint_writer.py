"""A streaming safetensors writer of random weights: bounded memory whatever the model's size.

Values are draws from 65,536 quantiles of a normal distribution, picked by random 16-bit numbers: 4 ns per weight.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from checkpoint_shapes import Kind, Shape

SLICE_ELEMENTS = 4 << 20
NUM_QUANTILES = 1 << 16
NORM_DEVIATION = 0.1
ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
SAFETENSORS_DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}

Table = NDArray[np.uint16] | NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How weights are drawn: matrices and biases around 0 with `deviation`, norms around 1. `dtype`: bf16, f16, f32."""

    seed: int
    deviation: float
    dtype: str


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 values to bfloat16, ties to even; return the bits."""
    bits = values.view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def tables(filling: Filling) -> dict[Kind, Table]:
    """Return the values that each kind of tensor draws from."""
    normal = statistics.NormalDist()
    half = [normal.inv_cdf((index + 0.5) / NUM_QUANTILES) for index in range(NUM_QUANTILES // 2)]
    quantiles = np.array(half + [-value for value in reversed(half)], dtype=np.float64)

    def stored(values: NDArray[np.float64]) -> Table:
        single = values.astype(np.float32)
        match filling.dtype:
            case "bf16":
                return bf16_bits(single)
            case "f16":
                return single.astype(np.float16)
            case _:
                return single

    around_zero = stored(quantiles * filling.deviation)
    return {
        Kind.MATRIX: around_zero,
        Kind.BIAS: around_zero,
        Kind.NORM: stored(1.0 + NORM_DEVIATION * quantiles),
    }


def plan_shards(shapes: list[Shape], item_bytes: int, max_bytes: int) -> list[list[Shape]]:
    """Split tensors, in order, into shards of at most `max_bytes` (a larger tensor gets a shard of its own)."""
    shards: list[list[Shape]] = [[]]
    filled_bytes = 0
    for shape in shapes:
        num_bytes = _num_elements(shape) * item_bytes
        if shards[-1] and filled_bytes + num_bytes > max_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(shape)
        filled_bytes += num_bytes
    return shards


def write_weights(directory: Path, shapes: list[Shape], filling: Filling, max_shard_bytes: int) -> Iterator[Path]:
    """Write model.safetensors, or shards with their index; yield each file when it is written."""
    item_bytes = ITEM_BYTES[filling.dtype]
    shards = plan_shards(shapes, item_bytes, max_shard_bytes)
    values, first = tables(filling), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (directory / name).open("wb") as file:
            file.write(_header(shard, filling.dtype))
            for position, shape in enumerate(shard, start=first):
                _write_tensor(file, shape, values[shape.kind], np.random.SeedSequence([filling.seed, position]))
        first += len(shard)
        weight_map.update({shape.name: name for shape in shard})
        yield directory / name
    if len(shards) > 1:
        total = sum(_num_elements(shape) for shape in shapes) * item_bytes
        index_file = directory / "model.safetensors.index.json"
        index_file.write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
        )
        yield index_file


def _num_elements(shape: Shape) -> int:
    return int(np.prod(shape.shape, dtype=np.int64))


def _header(shard: list[Shape], dtype: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for shape in shard:
        end = position + _num_elements(shape) * ITEM_BYTES[dtype]
        entries[shape.name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Padded, so that the data begins at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, shape: Shape, table: Table, seed: np.random.SeedSequence) -> None:
    generator = np.random.Generator(np.random.SFC64(seed))
    rest = _num_elements(shape)
    while rest:
        size = min(rest, SLICE_ELEMENTS)
        file.write(table[generator.integers(0, NUM_QUANTILES, size, dtype=np.uint16)].data)
        rest -= size
