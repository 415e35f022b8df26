"""Qwen2, Qwen2.5 (`qwen2`) and Qwen3 dense models (`qwen3`)."""

from __future__ import annotations

from openautoglm.families.common import (
    MAX_WINDOW,
    attention,
    attention_layer,
    decoder,
    read_dimensions,
    read_heads,
    read_layer_types,
    read_mlp,
)
from openautoglm.families.config_reader import MAX_LAYERS, ConfigReader
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import ArchSpec

_DEFAULT_KV_HEADS = 32
_DEFAULT_WINDOW = 4096
_DEFAULT_WINDOW_LAYERS = 28
_QWEN3_HEAD_DIM = 128


def describe_qwen2(reader: ConfigReader) -> ArchSpec:
    """Describe qwen2: biases on query, key and value only; a window only where it is switched on."""
    dimensions = read_dimensions(reader)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_DEFAULT_KV_HEADS)
    rotary = read_rotary(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    mlp = read_mlp(reader)
    layers = [
        attention_layer(attention(heads, rotary, qkv_bias=True, window=window), mlp, dimensions.norm)
        for window in _windows(reader, dimensions.num_layers)
    ]
    return decoder("qwen", "qwen2", dimensions, layers)


def describe_qwen3(reader: ConfigReader) -> ArchSpec:
    """Describe qwen3: queries and keys are normalised per head; `attention_bias` covers the output too."""
    dimensions = read_dimensions(reader)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_DEFAULT_KV_HEADS, head_dim=_QWEN3_HEAD_DIM)
    bias = reader.flag("attention_bias", False)
    rotary = read_rotary(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    mlp = read_mlp(reader)
    layers = [
        attention_layer(
            attention(heads, rotary, qkv_bias=bias, output_bias=bias, qk_norm=dimensions.norm, window=window),
            mlp,
            dimensions.norm,
        )
        for window in _windows(reader, dimensions.num_layers)
    ]
    return decoder("qwen", "qwen3", dimensions, layers)


def _windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    in_use = reader.flag("use_sliding_window", False)
    window = reader.optional_integer("sliding_window", _DEFAULT_WINDOW, high=MAX_WINDOW)
    first_sliding = reader.integer("max_window_layers", _DEFAULT_WINDOW_LAYERS, low=0, high=MAX_LAYERS)
    return read_layer_types(reader, num_layers, window=window if in_use else None, first_sliding=first_sliding)
