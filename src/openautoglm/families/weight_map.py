"""From names and a description to a `WeightMap`: every tensor of the checkpoint is bound, ignored, or refused.

Rows of interleaved rotary heads are marked for permutation to half-split; gate and up rows alternate, so that one
canonical layout reaches the decoder whatever the family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from openautoglm.errors import (
    CheckpointFormatError,
    MissingTensorError,
    UnexpectedTensorError,
    UnsupportedModelError,
)
from openautoglm.families.tensor_names import TensorNames
from openautoglm.spec.arch import ArchSpec, AttentionSpec, DenseMlpSpec, LayerSpec, NormPlacement
from openautoglm.spec.weights import (
    MatrixBinding,
    MatrixRole,
    RotaryPermutation,
    TensorPart,
    VectorBinding,
    VectorRole,
    WeightMap,
)

_MAX_NAMED = 5
_PLACED_NORMS = {
    NormPlacement.PRE: (VectorRole.INPUT_NORM, VectorRole.PRE_MLP_NORM),
    NormPlacement.SANDWICH: (
        VectorRole.INPUT_NORM,
        VectorRole.POST_MIXER_NORM,
        VectorRole.PRE_MLP_NORM,
        VectorRole.POST_MLP_NORM,
    ),
    NormPlacement.PARALLEL: (VectorRole.INPUT_NORM,),
}


def build_weight_map(
    spec: ArchSpec,
    names: TensorNames,
    tensor_shapes: Mapping[str, tuple[int, ...]],
    *,
    num_extra_layers: int = 0,
) -> WeightMap:
    """Bind every tensor of a checkpoint.

    `num_extra_layers` layers after the decoder's (multi-token prediction) are ignored. Raises `MissingTensorError`,
    `UnexpectedTensorError`, `CheckpointFormatError` for a wrong shape, each naming the tensor, and
    `UnsupportedModelError` for layers that are no plain ones.
    """
    builder = _Builder(spec, names, tensor_shapes)
    builder.add_edges()
    for index, layer in enumerate(spec.layers):
        if not isinstance(layer.mixer, AttentionSpec) or not isinstance(layer.mlp, DenseMlpSpec):
            raise UnsupportedModelError(
                f"{spec.model_type} layers are described, not loaded: {', '.join(spec.features)}",
                features=spec.features,
            )
        builder.add_attention(index, layer.mixer)
        builder.add_mlp(index, layer.mlp)
        builder.add_norms(index, layer, layer.mixer)
    return builder.finish(num_extra_layers)


class _Builder:
    """Collects bindings and remembers which tensors they used."""

    def __init__(self, spec: ArchSpec, names: TensorNames, tensor_shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._spec = spec
        self._names = names
        self._shapes = tensor_shapes
        self._used: set[str] = set()
        self._matrices: list[MatrixBinding] = []
        self._vectors: list[VectorBinding] = []

    def add_edges(self) -> None:
        """Bind embeddings, head and final norm."""
        shape = (self._spec.vocab_size, self._spec.hidden_size)
        self._matrix(MatrixRole.EMBEDDING, None, (self._part(self._names.embedding, shape),))
        if not self._spec.tied_embeddings:
            self._matrix(MatrixRole.HEAD, None, (self._part(self._names.head, shape),))
        if self._spec.head_bias:
            bias = self._names.head.removesuffix(".weight") + ".bias"
            self._vector(VectorRole.HEAD_BIAS, None, (self._part(bias, shape[:1]),))
        self._vector(VectorRole.FINAL_NORM, None, (self._part(self._names.final_norm, shape[1:]),))

    def add_attention(self, layer: int, attention: AttentionSpec) -> None:
        """Bind query, key and value as one matrix, and the output projection."""
        hidden = self._spec.hidden_size
        kv_rows = attention.num_kv_heads * attention.head_dim
        rows = (attention.num_heads * attention.head_dim, kv_rows, kv_rows)
        turned = _permutation(attention)
        permutations = (turned, turned, None)
        base = self._names.qkv
        self._matrix(MatrixRole.QKV, layer, self._parts(layer, base, "weight", rows, (hidden,), permutations))
        if attention.qkv_bias:
            self._vector(VectorRole.QKV_BIAS, layer, self._parts(layer, base, "bias", rows, (), permutations))
        width = rows[0]
        output = self._layer_name(layer, self._names.output)
        self._matrix(MatrixRole.ATTENTION_OUTPUT, layer, (self._part(f"{output}.weight", (hidden, width)),))
        if attention.output_bias:
            self._vector(VectorRole.ATTENTION_OUTPUT_BIAS, layer, (self._part(f"{output}.bias", (hidden,)),))

    def add_mlp(self, layer: int, mlp: DenseMlpSpec) -> None:
        """Bind gate and up with alternating rows (or up alone), and down."""
        hidden, width = self._spec.hidden_size, mlp.intermediate_size
        rows = (width, width) if mlp.gated else (width,)
        plain = (None,) * len(rows)
        base = self._names.gate_up
        parts = self._parts(layer, base, "weight", rows, (hidden,), plain)
        self._matrix(MatrixRole.GATE_UP, layer, parts, interleaved=mlp.gated)
        down = self._layer_name(layer, self._names.down)
        self._matrix(MatrixRole.DOWN, layer, (self._part(f"{down}.weight", (hidden, width)),))
        if mlp.bias:
            biases = self._parts(layer, base, "bias", rows, (), plain)
            self._vector(VectorRole.GATE_UP_BIAS, layer, biases, interleaved=mlp.gated)
            self._vector(VectorRole.DOWN_BIAS, layer, (self._part(f"{down}.bias", (hidden,)),))

    def add_norms(self, index: int, layer: LayerSpec, attention: AttentionSpec) -> None:
        """Bind the norms around the blocks, and those of queries and keys, that the description has."""
        for role in _PLACED_NORMS[layer.placement]:
            self._norm(role, index, self._spec.hidden_size, None)
        if attention.qk_norm is not None:
            for role in (VectorRole.QUERY_NORM, VectorRole.KEY_NORM):
                self._norm(role, index, attention.head_dim, _permutation(attention))

    def finish(self, num_extra_layers: int) -> WeightMap:
        """Return the map; raise `UnexpectedTensorError` if a tensor is neither bound nor known to be idle."""
        idle: list[str] = []
        unexpected: list[str] = []
        for name in sorted(self._shapes.keys() - self._used):
            (idle if self._is_idle(name, num_extra_layers) else unexpected).append(name)
        if unexpected:
            raise UnexpectedTensorError(
                f"the checkpoint holds {len(unexpected)} tensors that {self._spec.model_type} does not explain: "
                f"{_listed(unexpected)}; check that config.json belongs to these files"
            )
        return WeightMap(matrices=tuple(self._matrices), vectors=tuple(self._vectors), ignored=tuple(idle))

    def _is_idle(self, name: str, num_extra_layers: int) -> bool:
        if name.endswith(self._names.ignored):
            return True
        if self._spec.tied_embeddings and name == self._names.head:
            return True
        before, after = self._names.layer.split("{layer}")
        match = re.fullmatch(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}.+", name)
        end = self._spec.num_layers + num_extra_layers
        return match is not None and self._spec.num_layers <= int(match.group(1)) < end

    def _norm(self, role: VectorRole, layer: int, size: int, permutation: RotaryPermutation | None) -> None:
        name = self._names.norms.get(role)
        if name is None:
            raise MissingTensorError(f"{self._spec.model_type} layers have no tensor in the role of {role}")
        part = self._part(self._layer_name(layer, name), (size,), permutation=permutation)
        self._vector(role, layer, (part,))

    def _layer_name(self, layer: int, name: str) -> str:
        return self._names.layer.format(layer=layer) + name

    def _parts(
        self,
        layer: int,
        bases: tuple[str, ...],
        suffix: str,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        permutations: Iterable[RotaryPermutation | None],
    ) -> tuple[TensorPart, ...]:
        """Return one part per entry of `rows`, out of one tensor that holds all or of one tensor each."""
        names = [f"{self._layer_name(layer, base)}.{suffix}" for base in bases]
        parts, begin = [], 0
        for index, (count, permutation) in enumerate(zip(rows, permutations, strict=True)):
            if len(names) == 1:
                shape = (sum(rows), *columns)
                parts.append(self._part(names[0], shape, begin, begin + count, permutation=permutation))
            else:
                parts.append(self._part(names[index], (count, *columns), permutation=permutation))
            begin += count
        return tuple(parts)

    def _part(
        self,
        name: str,
        shape: tuple[int, ...],
        row_begin: int = 0,
        row_end: int | None = None,
        *,
        permutation: RotaryPermutation | None = None,
    ) -> TensorPart:
        found = self._shapes.get(name)
        if found is None:
            raise MissingTensorError(
                f"the checkpoint lacks the tensor {name!r} that {self._spec.model_type} needs: "
                "check that all shards are there and that config.json belongs to them"
            )
        if tuple(found) != shape:
            raise CheckpointFormatError(
                f"tensor {name!r} has the shape {list(found)}, config.json asks for {list(shape)}: "
                "check that config.json belongs to these files"
            )
        self._used.add(name)
        end = shape[0] if row_end is None else row_end
        return TensorPart(name=name, shape=shape, row_begin=row_begin, row_end=end, permutation=permutation)

    def _matrix(
        self, role: MatrixRole, layer: int | None, parts: tuple[TensorPart, ...], *, interleaved: bool = False
    ) -> None:
        self._matrices.append(MatrixBinding(role=role, layer=layer, parts=parts, interleaved=interleaved))

    def _vector(
        self, role: VectorRole, layer: int | None, parts: tuple[TensorPart, ...], *, interleaved: bool = False
    ) -> None:
        self._vectors.append(VectorBinding(role=role, layer=layer, parts=parts, interleaved=interleaved))


def _permutation(attention: AttentionSpec) -> RotaryPermutation | None:
    rotary = attention.rotary
    if rotary is None or not rotary.interleaved:
        return None
    return RotaryPermutation(head_dim=attention.head_dim, rotary_dims=rotary.dimensions)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMED])
    return f"{shown}, …" if len(names) > _MAX_NAMED else shown
