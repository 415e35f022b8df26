"""Bytes of layers that stay on disk: what they free, and the ring of memory that they are read into.

The ring holds the layer in use and room for the largest matrix beside it: while a layer is multiplied, matrix by
matrix, the next one on disk comes in behind it. It is there when the layers in memory between the two take long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openautoglm.memory.shapes import MatrixShape, layer_matrices
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat, WeightFormat
from openautoglm.units import round_up

NUM_READERS = 4
DIRECT_BYTES = 4096  # direct reads begin and end on multiples of it, so a matrix takes up to one more at each end
_FULL_PRECISION = WeightFormat(number=NumberFormat.F32)


def layer_disk_bytes(spec: ArchSpec, formats: ModelFormats) -> tuple[int, ...]:
    """Return the bytes of each layer's packed matrices: what a layer on disk frees."""
    return tuple(
        sum(matrix.count * _packed_bytes(matrix, formats) for matrix in layer_matrices(layer, spec.hidden_size))
        for layer in spec.layers
    )


def layer_matrix_bytes(spec: ArchSpec, formats: ModelFormats) -> tuple[int, ...]:
    """Return the bytes of each packed matrix of all layers, one after the other."""
    return tuple(
        _packed_bytes(matrix, formats)
        for layer in spec.layers
        for matrix in layer_matrices(layer, spec.hidden_size)
        for _ in range(matrix.count)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRoom:
    """What a layer's matrices take in a ring: all of them, and the largest."""

    all_bytes: int
    largest_bytes: int


def layer_rooms(spec: ArchSpec, formats: ModelFormats) -> tuple[RingRoom, ...]:
    """Return the room that each layer takes in a ring."""
    rooms = []
    for layer in spec.layers:
        sizes = [
            (matrix.count, round_up(_packed_bytes(matrix, formats), DIRECT_BYTES) + DIRECT_BYTES)
            for matrix in layer_matrices(layer, spec.hidden_size)
        ]
        largest = max((size for _, size in sizes), default=0)
        rooms.append(RingRoom(all_bytes=sum(count * size for count, size in sizes), largest_bytes=largest))
    return tuple(rooms)


def ring_bytes(rooms: Sequence[RingRoom]) -> int:
    """Return the bytes of the ring that layers share: the largest and its largest matrix, at most all of them."""
    if not rooms:
        return 0
    most = max(room.all_bytes for room in rooms) + max(room.largest_bytes for room in rooms)
    return min(sum(room.all_bytes for room in rooms), most)


def _packed_bytes(matrix: MatrixShape, formats: ModelFormats) -> int:
    chosen = _FULL_PRECISION if matrix.full_precision else formats.layers
    return chosen.packed_bytes(matrix.num_outputs, matrix.num_inputs)
