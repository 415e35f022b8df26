"""Multi-head latent attention: GLM-4.7-Flash (`glm4_moe_lite`), GLM-5 family (`glm_moe_dsa`), with DSA's indexer."""

from __future__ import annotations

from openautoglm.families.common import Dimensions, decoder, read_dimensions, read_mlp
from openautoglm.families.config_reader import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, ConfigReader
from openautoglm.families.moe import glm_experts, read_layer_mlps
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import (
    ArchSpec,
    CacheKind,
    IndexerSpec,
    LatentAttentionSpec,
    LayerSpec,
    NormPlacement,
    NormSpec,
    RotarySpec,
)

# the norms of the latents ignore rms_norm_eps
LATENT_NORM = NormSpec(epsilon=1e-6)

_DEFAULT_FIRST_SHARED = 2
_FLASH_SCALING = 1.8
_DSA_SCALING = 2.5
_DSA_DENSE_LAYERS = 3


def describe_glm4_moe_lite(reader: ConfigReader) -> ArchSpec:
    """Describe glm4_moe_lite: latent attention, one dense layer, then experts."""
    dimensions = read_dimensions(reader, epsilon=1e-5)
    interleaved = reader.flag("rope_interleave", True)
    mixer = read_latent_attention(reader, dimensions, interleaved=interleaved, indexer=None)
    dense, sparse = read_mlp(reader), glm_experts(reader, scaling=_FLASH_SCALING)
    num_dense = reader.integer("first_k_dense_replace", 1, low=0, high=MAX_LAYERS)
    mlps = read_layer_mlps(reader, dimensions.num_layers, num_dense=num_dense, dense=dense, sparse=sparse)
    layers = [
        LayerSpec(mixer=mixer, mlp=mlp, norm=dimensions.norm, placement=NormPlacement.PRE, cache=CacheKind.LATENT)
        for mlp in mlps
    ]
    return decoder("glm", "glm4_moe_lite", dimensions, layers)


def describe_glm_moe_dsa(reader: ConfigReader) -> ArchSpec:
    """Describe glm_moe_dsa: latent attention over the tokens that an indexer chooses."""
    dimensions = read_dimensions(reader, epsilon=1e-5)
    reader.neutral("mlp_bias", False)
    reader.neutral("rope_interleave", True)
    reader.neutral("indexer_rope_interleave", True)
    kinds = read_indexer_kinds(reader, dimensions.num_layers)
    full = read_indexer(reader)
    mixers = {
        shared: read_latent_attention(reader, dimensions, interleaved=True, indexer=indexer)
        for shared, indexer in ((False, full), (True, share_indexer(full)))
    }
    dense, sparse = read_mlp(reader), glm_experts(reader, scaling=_DSA_SCALING)
    num_dense = reader.integer("first_k_dense_replace", _DSA_DENSE_LAYERS, low=0, high=MAX_LAYERS)
    mlps = read_layer_mlps(reader, dimensions.num_layers, num_dense=num_dense, dense=dense, sparse=sparse)
    reader.words("layer_types", length=dimensions.num_layers, choices=("indexed_attention",))
    layers = [
        LayerSpec(
            mixer=mixers[shared],
            mlp=mlp,
            norm=dimensions.norm,
            placement=NormPlacement.PRE,
            cache=CacheKind.LATENT_INDEXED,
        )
        for shared, mlp in zip(kinds, mlps, strict=True)
    ]
    return decoder("glm", "glm_moe_dsa", dimensions, layers)


def read_latent_attention(
    reader: ConfigReader,
    dimensions: Dimensions,
    *,
    interleaved: bool,
    indexer: IndexerSpec | None,
    latent_norm: NormSpec = LATENT_NORM,
) -> LatentAttentionSpec:
    """Read latent attention; with qk_rope_head_dim 0 it has no positions (NoPE)."""
    num_heads = reader.integer("num_attention_heads", high=MAX_HEADS)
    if reader.integer("num_key_value_heads", num_heads, high=MAX_HEADS) != num_heads:
        reader.fail("num_key_value_heads", f"equal to num_attention_heads ({num_heads})")
    nope = reader.integer("qk_nope_head_dim", high=MAX_HEAD_DIM)
    rope = reader.integer("qk_rope_head_dim", low=0, high=MAX_HEAD_DIM)
    if reader.integer("qk_head_dim", nope + rope, high=2 * MAX_HEAD_DIM) != nope + rope:
        reader.fail("qk_head_dim", f"qk_nope_head_dim + qk_rope_head_dim ({nope + rope})")
    reader.accept(("head_dim",))  # the class sets it to the rotary part
    return LatentAttentionSpec(
        num_heads=num_heads,
        query_rank=reader.integer("q_lora_rank") if reader.has("q_lora_rank") or indexer is not None else None,
        kv_rank=reader.integer("kv_lora_rank"),
        nope_head_dim=nope,
        rope_head_dim=rope,
        value_head_dim=reader.integer("v_head_dim", high=MAX_HEAD_DIM),
        qkv_bias=reader.flag("attention_bias", False),
        scale=(nope + rope) ** -0.5,
        rotary=_rotary(reader, dimensions, rope, interleaved=interleaved) if rope else None,
        latent_norm=latent_norm,
        indexer=indexer,
    )


def _rotary(reader: ConfigReader, dimensions: Dimensions, rope_head_dim: int, *, interleaved: bool) -> RotarySpec:
    # other kinds would change the softmax scale too
    context = RotaryContext(
        head_dim=rope_head_dim,
        max_positions=dimensions.max_positions,
        interleaved=interleaved,
        kinds=("default",),
    )
    return read_rotary(reader, context)


def read_indexer(reader: ConfigReader, *, pool_tokens: int = 1) -> IndexerSpec:
    """Read the sizes of a full indexer."""
    return IndexerSpec(
        num_heads=reader.integer("index_n_heads", high=MAX_HEADS),
        head_dim=reader.integer("index_head_dim", high=MAX_HEAD_DIM),
        top_k=reader.integer("index_topk", high=MAX_POSITIONS),
        pool_tokens=pool_tokens,
    )


def share_indexer(full: IndexerSpec) -> IndexerSpec:
    """Return the description of a layer that reuses the choice of `full`."""
    return IndexerSpec(
        num_heads=full.num_heads,
        head_dim=full.head_dim,
        top_k=full.top_k,
        shared=True,
        pool_tokens=full.pool_tokens,
    )


def read_indexer_kinds(reader: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it shares the last full indexer's choice.

    `indexer_types` wins over `index_topk_pattern` ("FSSF…"), that over the schedule of frequency and offset. The
    first layer has nothing to share, so it must be full.
    """
    frequency = reader.integer("index_topk_freq", 1, low=0, high=MAX_LAYERS)
    offset = reader.integer("index_skip_topk_offset", _DEFAULT_FIRST_SHARED, low=0, high=MAX_LAYERS)
    types = reader.words("indexer_types", length=num_layers, choices=("full", "shared"))
    pattern = reader.pattern("index_topk_pattern", length=num_layers, letters="FS")
    if types is not None:
        kinds = tuple(kind == "shared" for kind in types)
    elif pattern is not None:
        kinds = tuple(letter == "S" for letter in pattern)
    else:
        step = max(frequency, 1)
        kinds = tuple(max(index - offset + 1, 0) % step != 0 for index in range(num_layers))
    if kinds[0]:
        reader.fail("indexer_types", "a list that begins with full")
    return kinds
