"""The matrices and vectors of a model, as shapes: what every count of parameters and bytes is derived from.

A `MatrixShape` is a matrix as it is kept in memory: query, key and value fused, gate and up fused. Small matrices that
steer (routers, indexer weights) are kept in fp32 whatever the plan's format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from openautoglm.spec.arch import (
    ArchSpec,
    AttentionSpec,
    DenseMlpSpec,
    IndexerSpec,
    LatentAttentionSpec,
    LayerSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    RecurrentSpec,
)

NUM_NORMS = {NormPlacement.PRE: 2, NormPlacement.SANDWICH: 4, NormPlacement.PARALLEL: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixShape:
    """`count` matrices of [num_outputs, num_inputs], of which `num_active` take part in one token's step."""

    num_outputs: int
    num_inputs: int
    count: int = 1
    num_active: int = 1
    full_precision: bool = False

    @property
    def num_parameters(self) -> int:
        """Parameters of all `count` matrices."""
        return self.count * self.num_outputs * self.num_inputs

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token's step reads."""
        return self.num_active * self.num_outputs * self.num_inputs


def layer_matrices(layer: LayerSpec, hidden_size: int) -> tuple[MatrixShape, ...]:
    """Return the matrices of a layer."""
    return (*mixer_matrices(layer.mixer, hidden_size), *mlp_matrices(layer.mlp, hidden_size))


def layer_vector_elements(layer: LayerSpec, hidden_size: int) -> int:
    """Return the elements of a layer's norms, biases and router corrections (all kept in fp32)."""
    elements = NUM_NORMS[layer.placement] * norm_elements(layer.norm, hidden_size)
    return elements + _mixer_vectors(layer.mixer, hidden_size) + _mlp_vectors(layer.mlp, hidden_size)


def num_layer_vectors(layer: LayerSpec) -> int:
    """Return how many vectors a layer of attention and a dense MLP has: norms, and fused biases."""
    count = NUM_NORMS[layer.placement]
    if isinstance(layer.mixer, AttentionSpec):
        count += layer.mixer.qkv_bias + layer.mixer.output_bias + 2 * (layer.mixer.qk_norm is not None)
    return count + 2 * (isinstance(layer.mlp, DenseMlpSpec) and layer.mlp.bias)


def norm_elements(norm: NormSpec, size: int) -> int:
    """Return the elements of a norm over `size` features: a weight, and a bias for layer norm."""
    return size * (2 if norm.kind is NormKind.LAYER else 1)


def embedding_matrix(spec: ArchSpec) -> MatrixShape:
    """Return the shape of the embedding table, which is the head's shape too."""
    return MatrixShape(num_outputs=spec.vocab_size, num_inputs=spec.hidden_size)


def mixer_matrices(mixer: AttentionSpec | LatentAttentionSpec | RecurrentSpec, hidden: int) -> tuple[MatrixShape, ...]:
    """Return the matrices of a token mixer."""
    match mixer:
        case AttentionSpec():
            width = mixer.num_heads * mixer.head_dim
            key_value = 2 * mixer.num_kv_heads * mixer.head_dim
            return (
                MatrixShape(num_outputs=width + key_value, num_inputs=hidden),
                MatrixShape(num_outputs=hidden, num_inputs=width),
            )
        case LatentAttentionSpec():
            return _latent_matrices(mixer, hidden)
        case RecurrentSpec():
            return _recurrent_matrices(mixer, hidden)
        case _:
            assert_never(mixer)


def _latent_matrices(mixer: LatentAttentionSpec, hidden: int) -> tuple[MatrixShape, ...]:
    query = mixer.num_heads * (mixer.nope_head_dim + mixer.rope_head_dim)
    queries: tuple[MatrixShape, ...] = (MatrixShape(num_outputs=query, num_inputs=hidden),)
    if mixer.query_rank is not None:
        queries = (
            MatrixShape(num_outputs=mixer.query_rank, num_inputs=hidden),
            MatrixShape(num_outputs=query, num_inputs=mixer.query_rank),
        )
    latent = (
        MatrixShape(num_outputs=mixer.kv_rank + mixer.rope_head_dim, num_inputs=hidden),
        MatrixShape(
            num_outputs=mixer.num_heads * (mixer.nope_head_dim + mixer.value_head_dim), num_inputs=mixer.kv_rank
        ),
        MatrixShape(num_outputs=hidden, num_inputs=mixer.num_heads * mixer.value_head_dim),
    )
    return (*queries, *latent, *_indexer_matrices(mixer, hidden))


def _recurrent_matrices(mixer: RecurrentSpec, hidden: int) -> tuple[MatrixShape, ...]:
    keys, values = mixer.num_heads * mixer.key_dim, mixer.num_heads * mixer.value_dim
    channels = 2 * keys + values
    return (
        MatrixShape(num_outputs=channels, num_inputs=hidden),
        MatrixShape(num_outputs=channels, num_inputs=mixer.convolution_width, full_precision=True),
        MatrixShape(num_outputs=mixer.gate_rank, num_inputs=hidden, count=2, num_active=2),  # decay and output gate
        MatrixShape(num_outputs=keys, num_inputs=mixer.gate_rank),
        MatrixShape(num_outputs=values, num_inputs=mixer.gate_rank),
        MatrixShape(num_outputs=mixer.num_heads, num_inputs=hidden),
        MatrixShape(num_outputs=hidden, num_inputs=values),
    )


def _indexer_matrices(mixer: LatentAttentionSpec, hidden: int) -> tuple[MatrixShape, ...]:
    indexer = mixer.indexer
    if indexer is None or indexer.shared:
        return ()
    matrices = [
        MatrixShape(num_outputs=indexer.num_heads * indexer.head_dim, num_inputs=mixer.query_rank or hidden),
        MatrixShape(num_outputs=indexer.head_dim, num_inputs=hidden),
        MatrixShape(num_outputs=indexer.num_heads, num_inputs=hidden, full_precision=True),
    ]
    if indexer.pool_tokens > 1:
        matrices.append(MatrixShape(num_outputs=indexer.head_dim, num_inputs=hidden))
    return tuple(matrices)


def mlp_matrices(mlp: DenseMlpSpec | MoeSpec, hidden: int) -> tuple[MatrixShape, ...]:
    """Return the matrices of a feed-forward block; the routed experts of a mixture are those with a count above 1."""
    match mlp:
        case DenseMlpSpec():
            return (
                MatrixShape(num_outputs=(2 if mlp.gated else 1) * mlp.intermediate_size, num_inputs=hidden),
                MatrixShape(num_outputs=hidden, num_inputs=mlp.intermediate_size),
            )
        case MoeSpec():
            experts, active = mlp.num_experts, mlp.experts_per_token
            width, shared = mlp.expert_intermediate_size, mlp.shared_intermediate_size
            routed = (
                MatrixShape(num_outputs=experts, num_inputs=hidden, full_precision=True),
                MatrixShape(num_outputs=2 * width, num_inputs=hidden, count=experts, num_active=active),
                MatrixShape(num_outputs=hidden, num_inputs=width, count=experts, num_active=active),
            )
            if not shared:
                return routed
            return (
                *routed,
                MatrixShape(num_outputs=2 * shared, num_inputs=hidden),
                MatrixShape(num_outputs=hidden, num_inputs=shared),
            )
        case _:
            assert_never(mlp)


def _mixer_vectors(mixer: AttentionSpec | LatentAttentionSpec | RecurrentSpec, hidden: int) -> int:
    match mixer:
        case AttentionSpec():
            elements = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim if mixer.qkv_bias else 0
            elements += hidden if mixer.output_bias else 0
            return elements + (2 * norm_elements(mixer.qk_norm, mixer.head_dim) if mixer.qk_norm else 0)
        case LatentAttentionSpec():
            query_rank = mixer.query_rank or 0
            biases = query_rank + mixer.kv_rank + mixer.rope_head_dim + hidden if mixer.qkv_bias else 0
            norms = norm_elements(mixer.latent_norm, query_rank + mixer.kv_rank)
            return biases + norms + _indexer_vectors(mixer.indexer)
        case RecurrentSpec():
            # decay biases, one decay per head, output norm
            return mixer.num_heads * mixer.key_dim + mixer.num_heads + mixer.value_dim
        case _:
            assert_never(mixer)


def _indexer_vectors(indexer: IndexerSpec | None) -> int:
    if indexer is None or indexer.shared:
        return 0
    pool = indexer.pool_tokens * indexer.head_dim if indexer.pool_tokens > 1 else 0
    return 2 * indexer.head_dim + pool


def _mlp_vectors(mlp: DenseMlpSpec | MoeSpec, hidden: int) -> int:
    match mlp:
        case DenseMlpSpec():
            return (2 if mlp.gated else 1) * mlp.intermediate_size + hidden if mlp.bias else 0
        case MoeSpec():
            return 0  # the correction bias is a buffer: see `layer_buffer_elements`
        case _:
            assert_never(mlp)


def layer_buffer_elements(layer: LayerSpec) -> int:
    """Return fp32 elements that are kept but are no parameters: the correction bias of a router."""
    if isinstance(layer.mlp, MoeSpec) and layer.mlp.router.correction_bias:
        return layer.mlp.num_experts
    return 0
