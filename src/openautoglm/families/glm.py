"""GLM-4-9B (-hf) and GLM-edge (`glm`), GLM-4-0414 (`glm4`).

Rotary embedding turns half of each head in interleaved pairs; gate and up are one tensor, gate first. `glm4` adds a
norm after each block: there `post_attention_layernorm` is the norm BEFORE the MLP.
"""

from __future__ import annotations

from openautoglm.families.common import attention, attention_layer, decoder, read_dimensions, read_heads, read_mlp
from openautoglm.families.config_reader import ConfigReader
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import ArchSpec, NormPlacement

_DEFAULT_EPSILON = 1.5625e-07
_DEFAULT_KV_HEADS = 2
_DEFAULT_HEAD_DIM = 128
_DEFAULT_ROTARY_SHARE = 0.5


def describe_glm(reader: ConfigReader) -> ArchSpec:
    """Describe glm, GLM-edge included."""
    return _describe(reader, "glm", NormPlacement.PRE)


def describe_glm4(reader: ConfigReader) -> ArchSpec:
    """Describe glm4: sandwich norms."""
    return _describe(reader, "glm4", NormPlacement.SANDWICH)


def _describe(reader: ConfigReader, model_type: str, placement: NormPlacement) -> ArchSpec:
    dimensions = read_dimensions(reader, epsilon=_DEFAULT_EPSILON)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_DEFAULT_KV_HEADS, head_dim=_DEFAULT_HEAD_DIM)
    context = RotaryContext(
        head_dim=heads.head_dim,
        max_positions=dimensions.max_positions,
        interleaved=True,
        partial=_DEFAULT_ROTARY_SHARE,
    )
    mixer = attention(heads, read_rotary(reader, context), qkv_bias=reader.flag("attention_bias", True))
    layer = attention_layer(mixer, read_mlp(reader), dimensions.norm, placement)
    return decoder("glm", model_type, dimensions, [layer] * dimensions.num_layers)
