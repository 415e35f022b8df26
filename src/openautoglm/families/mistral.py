"""Mistral 7B and its shape (`model_type` mistral): llama with one sliding window on every layer."""

from __future__ import annotations

from openautoglm.families.common import (
    MAX_WINDOW,
    attention,
    attention_layer,
    decoder,
    read_dimensions,
    read_heads,
    read_mlp,
)
from openautoglm.families.config_reader import ConfigReader
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import ArchSpec

_DEFAULT_WINDOW = 4096
_DEFAULT_KV_HEADS = 8


def describe_mistral(reader: ConfigReader) -> ArchSpec:
    """Describe mistral; a file that says nothing about `sliding_window` has the class default, null means none."""
    dimensions = read_dimensions(reader)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_DEFAULT_KV_HEADS)
    window = reader.optional_integer("sliding_window", _DEFAULT_WINDOW, high=MAX_WINDOW)
    rotary = read_rotary(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    mixer = attention(heads, rotary, qkv_bias=False, window=window)
    layer = attention_layer(mixer, read_mlp(reader), dimensions.norm)
    return decoder("mistral", "mistral", dimensions, [layer] * dimensions.num_layers)
