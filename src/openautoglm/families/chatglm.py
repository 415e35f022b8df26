"""Legacy `chatglm` files of GLM-4-9B (and ChatGLM2/3 of the same shape), described as the `glm` that they are.

The original repositories come with their own code, which is never run; their keys are mapped here. Rotary embedding
turns half of each head in interleaved pairs at theta = 10000 x rope_ratio.
"""

from __future__ import annotations

from openautoglm.errors import UnsupportedModelError
from openautoglm.families.common import Dimensions, Heads, attention, attention_layer, decoder, shared_head_dim
from openautoglm.families.config_reader import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    ConfigReader,
    require_multiple,
)
from openautoglm.families.rope import DEFAULT_THETA, RotaryContext, rotary_from
from openautoglm.spec.arch import ArchSpec, DenseMlpSpec, NormSpec

_DEFAULT_EPSILON = 1e-5
_MAX_ROPE_RATIO = 1e6


def describe_chatglm(reader: ConfigReader) -> ArchSpec:
    """Describe a legacy checkpoint; raise `UnsupportedModelError` for GLM-4V-9B, which has a vision tower."""
    if reader.has("vision_config"):
        raise UnsupportedModelError(
            "config key 'vision_config': legacy chatglm checkpoints with a vision tower are not supported",
            features=("vision tower",),
        )
    _check_fixed_parts(reader)
    dimensions = _dimensions(reader)
    heads = _heads(reader, dimensions.hidden_size)
    context = RotaryContext(
        head_dim=heads.head_dim,
        max_positions=dimensions.max_positions,
        interleaved=True,
        partial=0.5,
        kinds=("default",),
    )
    theta = DEFAULT_THETA * reader.number("rope_ratio", 1.0, low=1e-3, high=_MAX_ROPE_RATIO)
    rotary = rotary_from(ConfigReader({}), context, theta=theta, partial=0.5, original=None)
    mixer = attention(heads, rotary, qkv_bias=reader.flag("add_qkv_bias", False))
    mlp = DenseMlpSpec(intermediate_size=reader.integer("ffn_hidden_size"))
    layer = attention_layer(mixer, mlp, dimensions.norm)
    return decoder("glm", "chatglm", dimensions, [layer] * dimensions.num_layers)


def _check_fixed_parts(reader: ConfigReader) -> None:
    """Understand the switches of the original code, at the values that GLM-4-9B uses."""
    for name in ("rmsnorm", "post_layer_norm", "original_rope"):
        reader.neutral(name, True)
    for name in ("add_bias_linear", "apply_residual_connection_post_layernorm", "prefix_projection"):
        reader.neutral(name, False)
    reader.neutral("pre_seq_len", None)
    reader.neutral("quantization_bit", 0)
    reader.neutral("interleaved_qkv", False)
    # the layer scaling is undone before the softmax; the head is never tied; vocab_size is the unpadded one
    reader.accept(("apply_query_key_layer_scaling", "tie_word_embeddings", "vocab_size"))


def _dimensions(reader: ConfigReader) -> Dimensions:
    num_layers = reader.integer("num_layers", high=MAX_LAYERS)
    if reader.integer("num_hidden_layers", num_layers, high=MAX_LAYERS) != num_layers:
        reader.fail("num_hidden_layers", f"equal to num_layers ({num_layers})")
    epsilon = reader.number("layernorm_epsilon", _DEFAULT_EPSILON, low=1e-30, high=1.0)
    max_positions = reader.integer("seq_length", high=MAX_POSITIONS)
    return Dimensions(
        hidden_size=reader.integer("hidden_size"),
        num_layers=num_layers,
        vocab_size=reader.integer("padded_vocab_size"),
        max_positions=max_positions,
        stretched_positions=max_positions,
        norm=NormSpec(epsilon=epsilon),
        tied=False,
    )


def _heads(reader: ConfigReader, hidden_size: int) -> Heads:
    num_heads = reader.integer("num_attention_heads", high=MAX_HEADS)
    head_dim = reader.optional_integer("kv_channels", high=MAX_HEAD_DIM)
    if head_dim is None:
        head_dim = shared_head_dim(reader, hidden_size, num_heads)
    groups = reader.optional_integer("multi_query_group_num", high=MAX_HEADS)
    kv_heads = groups if reader.flag("multi_query_attention", False) and groups is not None else num_heads
    require_multiple(reader, "multi_query_group_num", whole=num_heads, part=kv_heads, of="num_attention_heads")
    return Heads(num_heads=num_heads, num_kv_heads=kv_heads, head_dim=head_dim)
