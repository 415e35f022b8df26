"""Streaming a checkpoint's tensors in slices, turned into the order of rows that the decoder reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.executor.protocol import Float32
from openautoglm.spec.weights import MatrixBinding, RotaryPermutation, TensorPart, VectorBinding

Rows = NDArray[Any]  # float32, float16, or uint16 that holds the bits of bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSlice:
    """Rows of a canonical matrix: `rows[i]` is its row `row_begin + i * row_step`; `source_bytes` were read."""

    name: str
    row_begin: int
    row_step: int
    rows: Rows
    source_bytes: int


def matrix_slices(checkpoint: Checkpoint, binding: MatrixBinding) -> Iterator[MatrixSlice]:
    """Yield every row of a matrix once, in slices of at most 64 MiB (but at least one head where heads are permuted).

    Peak bytes: a slice and, where rows are permuted, its copy.
    """
    first_row = 0
    for index, part in enumerate(binding.parts):
        row_begin, row_step = (index, len(binding.parts)) if binding.interleaved else (first_row, 1)
        first_row += part.num_rows
        slice_rows = _slice_rows(checkpoint, part)
        for begin in range(part.row_begin, part.row_end, slice_rows):
            end = min(begin + slice_rows, part.row_end)
            rows = checkpoint.read_rows(part.name, begin, end)
            source_bytes = rows.nbytes
            if part.permutation is not None:
                rows = rows[_order(part.permutation, end - begin)]
            yield MatrixSlice(
                name=part.name,
                row_begin=row_begin + (begin - part.row_begin) * row_step,
                row_step=row_step,
                rows=rows,
                source_bytes=source_bytes,
            )


def read_vector(checkpoint: Checkpoint, binding: VectorBinding) -> Float32:
    """Read a canonical vector as fp32: its parts joined in order, or alternating."""
    parts = [_read_part(checkpoint, part) for part in binding.parts]
    if binding.interleaved:
        return np.ascontiguousarray(np.stack(parts, axis=1).reshape(-1))
    return np.concatenate(parts)


def binding_bytes(checkpoint: Checkpoint, binding: MatrixBinding | VectorBinding) -> int:
    """Return the bytes on disk that a binding reads."""
    return sum(checkpoint.tensors[part.name].row_bytes * part.num_rows for part in binding.parts)


def to_float32(rows: Rows) -> Float32:
    """Widen float16, or bf16 held as uint16, to fp32; exact."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32, copy=False)


def _read_part(checkpoint: Checkpoint, part: TensorPart) -> Float32:
    values = to_float32(checkpoint.read_rows(part.name, part.row_begin, part.row_end))
    if part.permutation is not None:
        values = values[_order(part.permutation, part.num_rows)]
    return values


def _slice_rows(checkpoint: Checkpoint, part: TensorPart) -> int:
    """Return how many rows go in one slice: whole heads where they are permuted."""
    rows = checkpoint.rows_per_slice(part.name)
    if part.permutation is None:
        return rows
    head_dim = part.permutation.head_dim
    return max(1, rows // head_dim) * head_dim


def _order(permutation: RotaryPermutation, num_rows: int) -> NDArray[np.intp]:
    """Return the source row of each row: in each head, pairs (0,1),(2,3).. become halves (0,2,4.., 1,3,5..)."""
    turned = np.arange(permutation.rotary_dims).reshape(-1, 2).T.reshape(-1)
    head = np.concatenate([turned, np.arange(permutation.rotary_dims, permutation.head_dim)])
    heads = np.arange(0, num_rows, permutation.head_dim)
    return np.asarray((heads[:, None] + head[None, :]).reshape(-1), dtype=np.intp)
