"""GLM-4.1V and AutoGLM-Phone (`glm4v`), GLM-4.5V (`glm4v_moe`): a described decoder beside a counted vision tower."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.families.common import Dimensions, attention, attention_layer, decoder, read_dimensions, read_heads
from openautoglm.families.common import read_mlp as read_dense_mlp
from openautoglm.families.config_reader import MAX_HEADS, MAX_LAYERS, ConfigReader, require_multiple
from openautoglm.families.features import with_features
from openautoglm.families.moe import glm4_moe_layers
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import ArchSpec, LayerSpec, NormPlacement, TowerSpec

_GLM4V_KV_HEADS = 2
_MAX_IMAGE_SIDE = 65_536


def describe_glm4v(reader: ConfigReader) -> ArchSpec:
    """Describe glm4v: the text part is glm4 with M-RoPE and biases that no key switches off."""
    text = _text_section(reader)
    dimensions = _text_dimensions(reader, text)
    heads = read_heads(text, dimensions.hidden_size, num_kv_heads=_GLM4V_KV_HEADS)
    context = RotaryContext(
        head_dim=heads.head_dim, max_positions=dimensions.max_positions, interleaved=True, partial=1.0, mrope=True
    )
    text.neutral("attention_bias", True)
    mixer = attention(heads, read_rotary(text, context), qkv_bias=True)
    layer = attention_layer(mixer, read_dense_mlp(text), dimensions.norm, NormPlacement.SANDWICH)
    return _with_tower(reader, text, "glm4v", dimensions, [layer] * dimensions.num_layers)


def describe_glm4v_moe(reader: ConfigReader) -> ArchSpec:
    """Describe glm4v_moe: the text part is glm4_moe with M-RoPE."""
    text = _text_section(reader)
    dimensions = _text_dimensions(reader, text)
    text.neutral("use_qk_norm", False)
    layers = glm4_moe_layers(text, dimensions, qk_norm=False, bias=True, mrope=True)
    return _with_tower(reader, text, "glm4v_moe", dimensions, layers)


def _text_section(reader: ConfigReader) -> ConfigReader:
    """Return the text part; early files keep its keys at the top level."""
    flat = reader.has("hidden_size") and not reader.has("text_config")
    return reader if flat else reader.required_section("text_config")


def _text_dimensions(reader: ConfigReader, text: ConfigReader) -> Dimensions:
    """Read the text part's sizes; embeddings are tied where either level says so."""
    dimensions = read_dimensions(text, epsilon=1e-5)
    return replace(dimensions, tied=reader.flag("tie_word_embeddings", False) or dimensions.tied)


def _with_tower(
    reader: ConfigReader, text: ConfigReader, model_type: str, dimensions: Dimensions, layers: list[LayerSpec]
) -> ArchSpec:
    tower = read_glm4v_tower(reader.required_section("vision_config"))
    text.finish()
    return with_features(replace(decoder("glm", model_type, dimensions, layers), towers=(tower,)))


def read_glm4v_tower(vision: ConfigReader) -> TowerSpec:
    """Count GLM-4.1V's tower; raise `ModelError` naming a bad key."""
    size = vision.integer("hidden_size")
    output = vision.integer("out_hidden_size")
    side = vision.integer("image_size", high=_MAX_IMAGE_SIDE) // _patch_side(vision)
    biases = 3 * size if vision.flag("attention_bias", False) else 0
    block = 2 * size + 4 * size * size + biases + 3 * size * output
    embeddings = patch_embedding_parameters(vision, size) + side * side * size
    merger = output * output + 2 * output + 3 * output * vision.integer("intermediate_size")
    norms = 2 * size
    total = embeddings + read_depth(vision) * block + norms + downsample_parameters(vision, size, output) + merger
    finish_tower(vision, size)
    return TowerSpec(kind="vision", num_parameters=total)


def read_depth(vision: ConfigReader) -> int:
    """Read the number of blocks of a tower."""
    return vision.integer("depth", high=MAX_LAYERS)


def patch_embedding_parameters(vision: ConfigReader, size: int) -> int:
    """Return the parameters of the convolution that embeds patches, its bias included."""
    side = _patch_side(vision)
    frames = vision.integer("temporal_patch_size", 2, high=MAX_LAYERS)
    return size * (vision.integer("in_channels", 3, high=MAX_LAYERS) * frames * side * side + 1)


def downsample_parameters(vision: ConfigReader, size: int, output: int) -> int:
    """Return the parameters of the convolution that merges neighbouring patches, its bias included."""
    merge = vision.integer("spatial_merge_size", 2, high=MAX_LAYERS)
    return output * (size * merge * merge + 1)


def finish_tower(vision: ConfigReader, size: int) -> int:
    """Check what does not change the count, refuse unknown keys, and return the size of a head."""
    num_heads = vision.integer("num_heads", high=MAX_HEADS)
    require_multiple(vision, "num_heads", whole=size, part=num_heads, of="hidden_size")
    vision.number("rms_norm_eps", 1e-5, low=1e-30, high=1.0)
    vision.choice("hidden_act", "silu", ("silu",))
    vision.accept(("rope_parameters", "rope_theta", "rope_scaling", "num_position_embeddings"))
    vision.finish()
    return size // num_heads


def _patch_side(vision: ConfigReader) -> int:
    return vision.integer("patch_size", 14, high=_MAX_IMAGE_SIDE)
