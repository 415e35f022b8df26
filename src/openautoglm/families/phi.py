"""Phi-1 to Phi-2 (`phi`): attention and MLP side by side on one layer norm; Phi-3 and Phi-4 (`phi3`)."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.families.common import (
    MAX_WINDOW,
    attention,
    attention_layer,
    decoder,
    read_dimensions,
    read_heads,
    read_mlp,
)
from openautoglm.families.config_reader import MAX_POSITIONS, ConfigReader
from openautoglm.families.features import with_features
from openautoglm.families.rope import RotaryContext, read_rotary, rope_section, rotary_from
from openautoglm.spec.arch import ArchSpec, NormKind, NormPlacement

_PHI_ROTARY_SHARE = 0.5
_PHI3_ORIGINAL_POSITIONS = 4096


def describe_phi(reader: ConfigReader) -> ArchSpec:
    """Describe phi: biases everywhere, the head included; an MLP without gate."""
    dimensions = read_dimensions(reader, epsilon=1e-5, epsilon_key="layer_norm_eps", kind=NormKind.LAYER)
    heads = read_heads(reader, dimensions.hidden_size)
    context = RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions, partial=_PHI_ROTARY_SHARE)
    qk_norm = dimensions.norm if reader.flag("qk_layernorm", False) else None
    mixer = attention(heads, read_rotary(reader, context), qkv_bias=True, output_bias=True, qk_norm=qk_norm)
    mlp = read_mlp(reader, bias=True, gated=False, activation="gelu_new")
    layer = attention_layer(mixer, mlp, dimensions.norm, NormPlacement.PARALLEL)
    spec = decoder("phi", "phi", dimensions, [layer] * dimensions.num_layers)
    return with_features(replace(spec, head_bias=True))


def describe_phi3(reader: ConfigReader) -> ArchSpec:
    """Describe phi3: llama with fused projections, optionally LongRoPE (once called su) and a sliding window."""
    dimensions = read_dimensions(reader, epsilon=1e-5)
    heads = read_heads(reader, dimensions.hidden_size)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        reader.neutral(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        reader.neutral(name, 1)
    context = RotaryContext(
        head_dim=heads.head_dim,
        max_positions=dimensions.max_positions,
        partial=1.0,
        kinds=("default", "longrope"),
        aliases={"su": "longrope", "yarn": "longrope"},
    )
    original = reader.integer("original_max_position_embeddings", _PHI3_ORIGINAL_POSITIONS, low=2, high=MAX_POSITIONS)
    rotary = rotary_from(
        rope_section(reader),
        context,
        theta=reader.number("rope_theta", context.theta, low=1.001, high=1e15),
        partial=reader.number("partial_rotary_factor", 1.0, low=1e-6, high=1.0),
        original=original,
    )
    window = reader.optional_integer("sliding_window", high=MAX_WINDOW)
    layer = attention_layer(attention(heads, rotary, qkv_bias=False, window=window), read_mlp(reader), dimensions.norm)
    return decoder("phi", "phi3", dimensions, [layer] * dimensions.num_layers)
