"""From an `ArchSpec` to the plain structs that the native decoder is built from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openautoglm.executor.protocol import Float32
from openautoglm.memory.workspace import rotary_tables
from openautoglm.native import _core
from openautoglm.spec.arch import ArchSpec, AttentionSpec, DenseMlpSpec, LayerSpec, NormPlacement, NormSpec, RotarySpec
from openautoglm.spec.formats import ActivationScale, AttentionArithmetic, ModelFormats, NumberFormat, WeightFormat
from openautoglm.spec.weights import MatrixRole, VectorRole

MatrixKey = tuple[MatrixRole, int | None]
VectorKey = tuple[VectorRole, int | None]

# Numbers of the formats in the native core (src/native/kernels.h).
FORMAT_NUMBERS = {
    NumberFormat.F32: 0,
    NumberFormat.BF16: 1,
    NumberFormat.INT8: 2,
    NumberFormat.INT4: 3,
    NumberFormat.NF4: 4,
}
KV_FORMAT_NUMBERS = {NumberFormat.F32: 0, NumberFormat.BF16: 1, NumberFormat.INT8: 2, NumberFormat.FP8: 3}


def matrix_format(role: MatrixRole, spec: ArchSpec, formats: ModelFormats) -> WeightFormat:
    """Return the format of a matrix; a tied table serves as head and has its format."""
    if role is MatrixRole.HEAD or (role is MatrixRole.EMBEDDING and spec.tied_embeddings):
        return formats.head
    return formats.embedding if role is MatrixRole.EMBEDDING else formats.layers


def describe_decoder(
    spec: ArchSpec,
    formats: ModelFormats,
    *,
    matrices: Mapping[MatrixKey, int],
    vectors: Mapping[VectorKey, Float32],
    max_step_tokens: int,
    max_step_rows: int,
) -> _core.DecoderConfig:
    """Return the native description; `matrices` are indices into the weight store, `vectors` are fp32.

    The spec must be supported (see `supports.unsupported_features`); a binding that is missing raises `KeyError`.
    """
    tables = rotary_tables(spec)
    config = _core.DecoderConfig()
    config.hidden_size = spec.hidden_size
    config.vocab_size = spec.vocab_size
    config.max_positions = spec.max_positions
    config.max_step_tokens = max_step_tokens
    config.max_step_rows = max_step_rows
    config.embedding_scale = spec.embedding_scale
    config.embedding = matrices[MatrixRole.EMBEDDING, None]
    config.head = matrices[MatrixRole.EMBEDDING if spec.tied_embeddings else MatrixRole.HEAD, None]
    config.final_norm = _norm(spec.final_norm, vectors[VectorRole.FINAL_NORM, None])
    config.portable_attention = formats.attention is AttentionArithmetic.PORTABLE
    config.quantise_per_token = formats.activations is ActivationScale.TOKEN
    config.kv_format = KV_FORMAT_NUMBERS[formats.kv]
    config.rotary = [_rotary(table) for table in tables]
    config.layers = [_layer(index, layer, tables, matrices, vectors) for index, layer in enumerate(spec.layers)]
    return config


def _layer(
    index: int,
    layer: LayerSpec,
    tables: tuple[RotarySpec, ...],
    matrices: Mapping[MatrixKey, int],
    vectors: Mapping[VectorKey, Float32],
) -> _core.LayerConfig:
    attention, mlp = layer.mixer, layer.mlp
    if not isinstance(attention, AttentionSpec) or not isinstance(mlp, DenseMlpSpec):
        raise TypeError(f"layer {index} is not one of attention and a dense MLP")
    config = _core.LayerConfig()
    config.num_heads = attention.num_heads
    config.num_kv_heads = attention.num_kv_heads
    config.head_dim = attention.head_dim
    config.window = attention.window or 0
    config.scale = attention.scale
    config.intermediate_size = mlp.intermediate_size
    config.rotary = -1 if attention.rotary is None else tables.index(attention.rotary)
    config.qkv = matrices[MatrixRole.QKV, index]
    config.attention_output = matrices[MatrixRole.ATTENTION_OUTPUT, index]
    config.gate_up = matrices[MatrixRole.GATE_UP, index]
    config.down = matrices[MatrixRole.DOWN, index]
    config.input_norm = _norm(layer.norm, vectors[VectorRole.INPUT_NORM, index])
    config.pre_mlp_norm = _norm(layer.norm, vectors[VectorRole.PRE_MLP_NORM, index])
    if layer.placement is NormPlacement.SANDWICH:
        config.post_mixer_norm = _norm(layer.norm, vectors[VectorRole.POST_MIXER_NORM, index])
        config.post_mlp_norm = _norm(layer.norm, vectors[VectorRole.POST_MLP_NORM, index])
    if attention.qk_norm is not None:
        config.query_norm = _norm(attention.qk_norm, vectors[VectorRole.QUERY_NORM, index])
        config.key_norm = _norm(attention.qk_norm, vectors[VectorRole.KEY_NORM, index])
    if attention.qkv_bias:
        config.qkv_bias = vectors[VectorRole.QKV_BIAS, index]
    if attention.output_bias:
        config.output_bias = vectors[VectorRole.ATTENTION_OUTPUT_BIAS, index]
    return config


def _norm(norm: NormSpec, weight: Float32) -> _core.NormConfig:
    return _core.NormConfig(weight=weight, epsilon=norm.epsilon, weight_offset=norm.weight_offset)


def _rotary(table: RotarySpec) -> _core.RotaryConfig:
    frequencies = np.array(table.inverse_frequencies, dtype=np.float32)
    return _core.RotaryConfig(inverse_frequencies=frequencies, attention_factor=table.attention_factor)
