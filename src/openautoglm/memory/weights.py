"""Bytes of weights: pure formulas of a description and its formats, exact for the packed layout of `spec.formats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from openautoglm.memory.shapes import (
    MatrixShape,
    embedding_matrix,
    layer_buffer_elements,
    layer_matrices,
    layer_vector_elements,
    mixer_matrices,
    mlp_matrices,
    norm_elements,
)
from openautoglm.spec.arch import ArchSpec, LayerSpec, MoeSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat, WeightFormat

_FLOAT_BYTES = 4
_TOWER_BYTES = 2  # towers stay in bf16
_FULL_PRECISION = WeightFormat(number=NumberFormat.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Bytes of weights.

    `layers` holds the decoder's matrices, hyper-connections and towers; `head` also holds the table of tied
    embeddings, whose `embedding` is then 0; `norms` holds every vector (norms, biases, router corrections) in fp32.
    """

    layers: int
    head: int
    embedding: int
    norms: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.layers + self.head + self.embedding + self.norms


def num_parameters(spec: ArchSpec) -> int:
    """Return the number of parameters, towers included, multi-token-prediction layers and buffers excluded."""
    return _count(spec, lambda matrix: matrix.num_parameters)


def num_active_parameters(spec: ArchSpec) -> int:
    """Return the parameters that one token's step reads: of a mixture only the experts that run."""
    return _count(spec, lambda matrix: matrix.num_active_parameters)


def weight_bytes(spec: ArchSpec, formats: ModelFormats) -> WeightBytes:
    """Return the bytes of all weights of `spec` in `formats`."""
    layers, vectors = 0, 0
    for layer, repeats in Counter(spec.layers).items():
        matrices = layer_matrices(layer, spec.hidden_size)
        layers += repeats * (
            sum(_packed_bytes(matrix, formats.layers) for matrix in matrices) + layer.extra_parameters * _FLOAT_BYTES
        )
        vectors += repeats * (layer_vector_elements(layer, spec.hidden_size) + layer_buffer_elements(layer))
    layers += sum(tower.num_parameters for tower in spec.towers) * _TOWER_BYTES
    layers += spec.extra_parameters * _FLOAT_BYTES
    table = embedding_matrix(spec)
    return WeightBytes(
        layers=layers,
        head=_packed_bytes(table, formats.head),
        embedding=0 if spec.tied_embeddings else _packed_bytes(table, formats.embedding),
        norms=_FLOAT_BYTES * (vectors + _model_vector_elements(spec)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """Tensors of one kind over all layers, and the format that they are kept in."""

    name: str
    number_format: str
    num_bytes: int


def layer_weight_groups(
    spec: ArchSpec, formats: ModelFormats, without: Collection[int] = ()
) -> tuple[WeightGroup, ...]:
    """Return the groups that make up `WeightBytes.layers`: attention, MLP, experts and so on; empty ones left out.

    The matrices of the layers `without` are not in them.
    """
    sizes: dict[tuple[str, str], int] = {}
    counted = Counter(layer for index, layer in enumerate(spec.layers) if index not in without)
    for layer, repeats in counted.items():
        for name, matrix in _named_matrices(layer, spec.hidden_size):
            kept = _FULL_PRECISION if matrix.full_precision else formats.layers
            key = name, str(kept)
            sizes[key] = sizes.get(key, 0) + repeats * _packed_bytes(matrix, kept)
    extra = spec.extra_parameters + sum(layer.extra_parameters for layer in spec.layers)
    towers = sum(tower.num_parameters for tower in spec.towers)
    sizes["hyper-connections", str(_FULL_PRECISION)] = extra * _FLOAT_BYTES
    sizes["towers", str(NumberFormat.BF16)] = towers * _TOWER_BYTES
    return tuple(
        WeightGroup(name=name, number_format=number_format, num_bytes=num_bytes)
        for (name, number_format), num_bytes in sizes.items()
        if num_bytes
    )


def _named_matrices(layer: LayerSpec, hidden_size: int) -> list[tuple[str, MatrixShape]]:
    mixture = isinstance(layer.mlp, MoeSpec)
    named = [("attention", matrix) for matrix in mixer_matrices(layer.mixer, hidden_size)]
    for matrix in mlp_matrices(layer.mlp, hidden_size):
        name = "experts" if matrix.count > 1 else "shared experts" if mixture else "MLP"
        named.append((name, matrix))
    return [("routers and indexers" if matrix.full_precision else name, matrix) for name, matrix in named]


def _packed_bytes(matrix: MatrixShape, weight_format: WeightFormat) -> int:
    chosen = _FULL_PRECISION if matrix.full_precision else weight_format
    return matrix.count * chosen.packed_bytes(matrix.num_outputs, matrix.num_inputs)


def _count(spec: ArchSpec, parameters: Callable[[MatrixShape], int]) -> int:
    total = sum(tower.num_parameters for tower in spec.towers) + spec.extra_parameters + _model_vector_elements(spec)
    total += (1 if spec.tied_embeddings else 2) * embedding_matrix(spec).num_parameters
    for layer, repeats in Counter(spec.layers).items():
        total += repeats * _layer_parameters(layer, spec.hidden_size, parameters)
    return total


def _layer_parameters(layer: LayerSpec, hidden_size: int, parameters: Callable[[MatrixShape], int]) -> int:
    matrices = sum(parameters(matrix) for matrix in layer_matrices(layer, hidden_size))
    return matrices + layer_vector_elements(layer, hidden_size) + layer.extra_parameters


def _model_vector_elements(spec: ArchSpec) -> int:
    return norm_elements(spec.final_norm, spec.hidden_size) + (spec.vocab_size if spec.head_bias else 0)
