"""GLM-5.3-Flash (`glm5_next`): linear attention (KDA) with latent attention every fourth layer, hyper-connections."""

from __future__ import annotations

from dataclasses import replace

from openautoglm.families.common import Dimensions, decoder, read_activation, read_dimensions
from openautoglm.families.config_reader import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, ConfigReader
from openautoglm.families.features import with_features
from openautoglm.families.mla import read_indexer, read_indexer_kinds, read_latent_attention, share_indexer
from openautoglm.families.moe import glm_experts, read_layer_mlps
from openautoglm.families.vision import (
    downsample_parameters,
    finish_tower,
    patch_embedding_parameters,
    read_depth,
)
from openautoglm.spec.arch import (
    ArchSpec,
    CacheKind,
    DenseMlpSpec,
    LatentAttentionSpec,
    LayerSpec,
    NormPlacement,
    RecurrentSpec,
    TowerSpec,
)

_DEFAULT_LIMIT = 10.0
_MAX_LIMIT = 1e6
_DENSE_LAYERS = 3
_LATENT_EVERY = 4
_MAX_STREAMS = 64
_SCALING = 2.5


def describe_glm5_next(reader: ConfigReader) -> ArchSpec:
    """Describe glm5_next; raise `ModelError` naming a bad key."""
    text = reader.required_section("text_config")
    dimensions = read_dimensions(text, epsilon=1e-5)
    dimensions = replace(dimensions, tied=reader.flag("tie_word_embeddings", False) or dimensions.tied)
    streams = text.integer("hc_mult", 4, high=_MAX_STREAMS)
    layers = _layers(text, dimensions, streams)
    text.number("hc_eps", 1e-6, low=0.0, high=1.0)
    text.integer("hc_sinkhorn_iters", 20, high=MAX_LAYERS)
    text.finish()
    tower = _read_tower(reader.required_section("vision_config"))
    spec = decoder("glm", "glm5_next", dimensions, layers)
    return with_features(replace(spec, towers=(tower,), residual_streams=streams))


def _layers(text: ConfigReader, dimensions: Dimensions, streams: int) -> list[LayerSpec]:
    limit = text.number("swiglu_limit", _DEFAULT_LIMIT, low=1e-6, high=_MAX_LIMIT)
    dense = DenseMlpSpec(
        intermediate_size=text.integer("intermediate_size"), activation=read_activation(text), limit=limit
    )
    mlps = read_layer_mlps(
        text,
        dimensions.num_layers,
        num_dense=_DENSE_LAYERS,
        dense=dense,
        sparse=glm_experts(text, scaling=_SCALING, limit=limit),
    )
    mixers = _mixers(text, dimensions)
    # two hyper-connections per layer, each a projection of all streams to its weights, their base, three scales
    weights = (2 + streams) * streams
    extra = 2 * (weights * streams * dimensions.hidden_size + weights + 3)
    return [
        LayerSpec(
            mixer=mixer,
            mlp=mlp,
            norm=dimensions.norm,
            placement=NormPlacement.PRE,
            cache=CacheKind.RECURRENT if isinstance(mixer, RecurrentSpec) else CacheKind.LATENT_INDEXED,
            extra_parameters=extra,
        )
        for mixer, mlp in zip(mixers, mlps, strict=True)
    ]


def _mixers(text: ConfigReader, dimensions: Dimensions) -> list[RecurrentSpec | LatentAttentionSpec]:
    count = dimensions.num_layers
    kinds = text.words("layer_types", length=count, choices=("linear_attention", "indexed_attention", "full_attention"))
    if kinds is None:
        kinds = tuple(
            "linear_attention" if index % _LATENT_EVERY != _LATENT_EVERY - 1 else "indexed_attention"
            for index in range(count)
        )
    text.neutral("qk_rope_head_dim", 0)
    text.neutral("index_kpool_always_select_tail", True, False)
    full = read_indexer(text, pool_tokens=text.integer("index_kpool", 16, high=MAX_LAYERS))
    latent = {
        shared: read_latent_attention(text, dimensions, interleaved=False, indexer=indexer, latent_norm=dimensions.norm)
        for shared, indexer in ((False, full), (True, share_indexer(full)))
    }
    recurrent = _read_recurrent(text)
    shares = read_indexer_kinds(text, count)
    return [
        recurrent if kind == "linear_attention" else latent[shared] for kind, shared in zip(kinds, shares, strict=True)
    ]


def _read_recurrent(text: ConfigReader) -> RecurrentSpec:
    head_dim = text.integer("linear_head_dim", high=MAX_HEAD_DIM)
    if text.has("linear_lower_bound"):
        text.number("linear_lower_bound", low=-1e6, high=0.0)
    return RecurrentSpec(
        num_heads=text.integer("linear_num_heads", high=MAX_HEADS),
        key_dim=head_dim,
        value_dim=head_dim,
        convolution_width=text.integer("linear_conv_kernel_dim", 4, high=MAX_LAYERS),
        gate_rank=head_dim,
    )


def _read_tower(vision: ConfigReader) -> TowerSpec:
    size = vision.integer("hidden_size")
    output = vision.integer("out_hidden_size")
    width = vision.integer("intermediate_size")
    vision.integer("image_size", high=MAX_HEADS)
    vision.number("swiglu_limit", _DEFAULT_LIMIT, low=1e-6, high=_MAX_LIMIT)
    bias = vision.flag("attention_bias", True)
    biases = 3 * size + size + 2 * width + size if bias else 0
    projection = vision.integer("projection_intermediate_size")
    merger = output * output + 2 * output + 3 * output * projection
    fixed = patch_embedding_parameters(vision, size) + size + downsample_parameters(vision, size, output) + merger
    depth = read_depth(vision)
    head_dim = finish_tower(vision, size)
    block = 2 * size + 2 * head_dim + 4 * size * size + 3 * size * width + biases
    return TowerSpec(kind="vision", num_parameters=fixed + depth * block)
