"""What a load takes above the weights themselves: slices of the checkpoint in flight while they are packed.

Weights are touched as they are packed, in the order embeddings, head, layers; slices are gone before KV pool and
workspace are touched. So a moment counts by its slices less what is packed after it: the last layer, and the tables
where few layers follow.

    read slice k:  slices k-1 and k are held, k and what follows is not packed yet
    pack slice k:  slice k is held (twice where its rows are permuted), what follows is not packed yet
"""

from __future__ import annotations

from collections.abc import Iterator

from openautoglm.memory.shapes import mixer_matrices, mlp_matrices
from openautoglm.spec.arch import ArchSpec, AttentionSpec, DenseMlpSpec, LayerSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat, WeightFormat
from openautoglm.units import MIB

SLICE_BYTES = 64 * MIB  # as the checkpoint reader cuts them
_MOST_IN_FLIGHT_BYTES = 3 * SLICE_BYTES


def loading_bytes(spec: ArchSpec, formats: ModelFormats, *, source_item_bytes: int) -> int:
    """Return the most bytes of slices that a load holds on top of all weights; `source_item_bytes` are on disk."""
    worst_bytes = after_bytes = 0
    for weight_format, num_inputs, parts in _from_the_last(spec, formats):
        # Of a number of matrices that are one shape (experts) each is read alone.
        in_flight = _in_flight_bytes(weight_format, num_inputs, parts, source_item_bytes)
        worst_bytes = max(worst_bytes, in_flight - after_bytes)
        after_bytes += weight_format.packed_bytes(sum(rows for rows, _ in parts), num_inputs)
        if after_bytes >= _MOST_IN_FLIGHT_BYTES:
            break
    return worst_bytes


_Parts = tuple[tuple[int, bool], ...]  # rows of each tensor, and whether they are permuted


def _from_the_last(spec: ArchSpec, formats: ModelFormats) -> Iterator[tuple[WeightFormat, int, _Parts]]:
    """Yield (format, inputs, parts) of every matrix, the one that is packed last first."""
    hidden, table = spec.hidden_size, ((spec.vocab_size, False),)
    for layer in reversed(spec.layers):
        for num_inputs, parts in reversed(list(_layer_parts(layer, hidden))):
            yield formats.layers, num_inputs, parts
    if not spec.tied_embeddings:
        yield formats.head, hidden, table
    yield (formats.head if spec.tied_embeddings else formats.embedding), hidden, table


def _layer_parts(layer: LayerSpec, hidden: int) -> Iterator[tuple[int, _Parts]]:
    mixer = layer.mixer
    if isinstance(mixer, AttentionSpec):
        turned = mixer.rotary is not None and mixer.rotary.interleaved
        query, key = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        yield hidden, ((query, turned), (key, turned), (key, False))
        yield query, ((hidden, False),)
    else:
        for matrix in mixer_matrices(mixer, hidden):
            yield matrix.num_inputs, ((matrix.num_outputs, False),)
    if isinstance(layer.mlp, DenseMlpSpec):
        width = layer.mlp.intermediate_size
        yield hidden, ((width, False),) * (2 if layer.mlp.gated else 1)
        yield width, ((hidden, False),)
    else:
        for matrix in mlp_matrices(layer.mlp, hidden):
            yield matrix.num_inputs, ((matrix.num_outputs, False),)


def _in_flight_bytes(weight_format: WeightFormat, num_inputs: int, parts: _Parts, item_bytes: int) -> int:
    """Return by how much slices of a matrix exceed what of it is still to be packed, at the worst moment."""
    row_bytes = num_inputs * item_bytes
    packed_row_bytes = weight_format.packed_bytes(32, num_inputs) // 32
    slice_rows = max(1, SLICE_BYTES // row_bytes)
    slices = [(min(slice_rows, rows - begin), turned) for rows, turned in parts for begin in range(0, rows, slice_rows)]
    unpacked_rows = worst_bytes = 0
    # From the end again: what follows a slice is known then, the slice before it is the next one to come.
    for index in reversed(range(len(slices))):
        rows, turned = slices[index]
        previous_rows = slices[index - 1][0] if index else 0
        packing = (1 + turned) * rows * row_bytes + (previous_rows * row_bytes if turned else 0)
        reading = (previous_rows + rows) * row_bytes - rows * packed_row_bytes
        worst_bytes = max(worst_bytes, max(packing, reading) - unpacked_rows * packed_row_bytes)
        unpacked_rows += rows
    return worst_bytes


def worth_packing(formats: ModelFormats, source_bytes: int, min_source_bytes: int) -> bool:
    """Return whether a load of a checkpoint of `source_bytes` keeps its packed weights on disk.

    Unquantised weights are not kept: their packed file would be as large as the checkpoint, and reading it takes as
    long.
    """
    quantised = formats.layers.number not in (NumberFormat.F32, NumberFormat.BF16)
    return quantised and source_bytes >= min_source_bytes
