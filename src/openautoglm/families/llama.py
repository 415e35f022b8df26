"""Llama 1 to 3.3 and the many models that share its shape (`model_type` llama)."""

from __future__ import annotations

from openautoglm.families.common import attention, attention_layer, decoder, read_dimensions, read_heads, read_mlp
from openautoglm.families.config_reader import ConfigReader
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import ArchSpec


def describe_llama(reader: ConfigReader) -> ArchSpec:
    """Describe llama: `attention_bias` covers the output projection too."""
    dimensions = read_dimensions(reader)
    heads = read_heads(reader, dimensions.hidden_size)
    bias = reader.flag("attention_bias", False)
    mlp = read_mlp(reader, bias=reader.flag("mlp_bias", False))
    rotary = read_rotary(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    mixer = attention(heads, rotary, qkv_bias=bias, output_bias=bias)
    layer = attention_layer(mixer, mlp, dimensions.norm)
    return decoder("llama", "llama", dimensions, [layer] * dimensions.num_layers)
