"""Gemma 3 text models (`gemma3_text`): sandwich norms stored as weight - 1, two rotary bases, scaled embeddings."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.families.common import (
    MAX_WINDOW,
    attention,
    attention_layer,
    decoder,
    read_activation,
    read_dimensions,
    read_heads,
)
from openautoglm.families.config_reader import MAX_LAYERS, ConfigReader
from openautoglm.families.features import with_features
from openautoglm.families.rope import RotaryContext, rotary_from
from openautoglm.spec.arch import ArchSpec, DenseMlpSpec, NormPlacement, RotarySpec

_KV_HEADS = 4
_HEAD_DIM = 256
_WINDOW = 4096
_PATTERN = 6
_FULL_THETA = 1e6
_SLIDING_THETA = 1e4
_KINDS = ("full_attention", "sliding_attention")


def describe_gemma3_text(reader: ConfigReader) -> ArchSpec:
    """Describe gemma3_text: five sliding layers, then a full one; the scale comes from `query_pre_attn_scalar`."""
    dimensions = read_dimensions(reader, weight_offset=1.0, tied=True)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_KV_HEADS, head_dim=_HEAD_DIM)
    window = reader.optional_integer("sliding_window", _WINDOW, high=MAX_WINDOW)
    scale = reader.number("query_pre_attn_scalar", 256.0, low=1e-3, high=1e6) ** -0.5
    bias = reader.flag("attention_bias", False)
    reader.neutral("use_bidirectional_attention", False, None)
    mlp = DenseMlpSpec(
        intermediate_size=reader.integer("intermediate_size"),
        activation=read_activation(reader, "hidden_activation", "gelu_pytorch_tanh"),
    )
    reader.accept(("hidden_act",))  # old files carry it, the class ignores it
    rotaries = _rotaries(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    mixers = {
        kind: attention(
            heads,
            rotaries[kind],
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=dimensions.norm,
            window=window if kind == "sliding_attention" else None,
            scale=scale,
        )
        for kind in _KINDS
    }
    layers = [
        attention_layer(mixers[kind], mlp, dimensions.norm, NormPlacement.SANDWICH)
        for kind in _layer_kinds(reader, dimensions.num_layers)
    ]
    spec = decoder("gemma", "gemma3_text", dimensions, layers)
    return with_features(replace(spec, embedding_scale=dimensions.hidden_size**0.5))


def _layer_kinds(reader: ConfigReader, num_layers: int) -> tuple[str, ...]:
    pattern = reader.integer("sliding_window_pattern", _PATTERN, high=MAX_LAYERS)
    reader.accept(("_sliding_window_pattern",))
    kinds = reader.words("layer_types", length=num_layers, choices=_KINDS)
    if kinds is not None:
        return kinds
    return tuple("sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(num_layers))


def _rotaries(reader: ConfigReader, context: RotaryContext) -> dict[str, RotarySpec]:
    """Read one rotary embedding per kind of layer; an old `rope_scaling` is that of full layers."""
    thetas = {
        "full_attention": reader.number("rope_theta", _FULL_THETA, low=1.001, high=1e15),
        "sliding_attention": reader.number("rope_local_base_freq", _SLIDING_THETA, low=1.001, high=1e15),
    }
    parameters = reader.section("rope_parameters") or ConfigReader({}, path="rope_parameters.")
    scaling = reader.section("rope_scaling")
    rotaries = {}
    for kind in _KINDS:
        section = parameters.section(kind) or ConfigReader({}, path=f"rope_parameters.{kind}.")
        if scaling is not None and kind == "full_attention":
            section = section.overlaid(scaling)
        rotaries[kind] = rotary_from(section, context, theta=thetas[kind], partial=None, original=None)
    parameters.finish()
    return rotaries
