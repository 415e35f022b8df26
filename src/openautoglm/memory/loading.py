"""What a load takes above the weights themselves: slices of the checkpoint in flight while they are packed.

Weights are touched as they are packed, in the order embeddings, layers, head; slices are gone before KV pool and
workspace are touched. So what counts is the end of a load, when nearly all weights are there.
"""

from __future__ import annotations

from openautoglm.memory.shapes import MatrixShape, embedding_matrix, layer_matrices
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats
from openautoglm.units import MIB

SLICE_BYTES = 64 * MIB  # as the checkpoint reader cuts them
_SLICES_IN_FLIGHT = 2  # the next one is read while the last one is still held


def loading_bytes(spec: ArchSpec, formats: ModelFormats, *, source_item_bytes: int) -> int:
    """Return the most bytes of slices that a load holds on top of all weights; `source_item_bytes` are on disk."""
    head = embedding_matrix(spec)
    behind_layers = 0 if spec.tied_embeddings else formats.head.packed_bytes(head.num_outputs, head.num_inputs)
    last_layer = max(
        (_slices_bytes(matrix, source_item_bytes) for matrix in layer_matrices(spec.layers[-1], spec.hidden_size)),
        default=0,
    )
    last_matrix = 0 if spec.tied_embeddings else _slices_bytes(head, source_item_bytes)
    return max(last_matrix, last_layer - behind_layers)


def _slices_bytes(matrix: MatrixShape, item_bytes: int) -> int:
    return min(matrix.num_outputs * matrix.num_inputs * item_bytes, _SLICES_IN_FLIGHT * SLICE_BYTES)
