"""Mixtures of experts over grouped-query attention: Qwen3-MoE (`qwen3_moe`), GLM-4.5 to 4.7 (`glm4_moe`)."""

from __future__ import annotations

from openautoglm.errors import ModelError
from openautoglm.families.common import (
    MAX_WINDOW,
    Dimensions,
    attention,
    attention_layer,
    decoder,
    read_activation,
    read_dimensions,
    read_heads,
    read_layer_types,
    read_mlp,
)
from openautoglm.families.config_reader import MAX_EXPERTS, MAX_LAYERS, ConfigReader
from openautoglm.families.rope import RotaryContext, read_rotary
from openautoglm.spec.arch import (
    ArchSpec,
    DenseMlpSpec,
    LayerSpec,
    MoeSpec,
    NormSpec,
    RotarySpec,
    RouterScoring,
    RouterSpec,
)

_QWEN_KV_HEADS = 4
_QWEN_WINDOW = 4096
_GLM_KV_HEADS = 8
_GLM_ROTARY_SHARE = 0.5
_MAX_SCALING = 1e4


def describe_qwen3_moe(reader: ConfigReader) -> ArchSpec:
    """Describe qwen3_moe: every `decoder_sparse_step`-th layer is sparse but those in `mlp_only_layers`."""
    dimensions = read_dimensions(reader)
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_QWEN_KV_HEADS)
    bias = reader.flag("attention_bias", False)
    rotary = read_rotary(reader, RotaryContext(head_dim=heads.head_dim, max_positions=dimensions.max_positions))
    in_use = reader.flag("use_sliding_window", False)
    window = reader.optional_integer("sliding_window", _QWEN_WINDOW, high=MAX_WINDOW)
    reader.accept(("max_window_layers",))  # this model type slides on every layer or on none
    windows = read_layer_types(reader, dimensions.num_layers, window=window if in_use else None, first_sliding=0)
    dense, sparse = read_mlp(reader), _qwen_experts(reader)
    step = reader.integer("decoder_sparse_step", 1, high=MAX_LAYERS)
    dense_layers = reader.indices("mlp_only_layers", end=dimensions.num_layers)
    layers = [
        attention_layer(
            attention(heads, rotary, qkv_bias=bias, output_bias=bias, qk_norm=dimensions.norm, window=window),
            dense if index in dense_layers or (index + 1) % step else sparse,
            dimensions.norm,
        )
        for index, window in enumerate(windows)
    ]
    return decoder("qwen", "qwen3_moe", dimensions, layers)


def describe_glm4_moe(reader: ConfigReader) -> ArchSpec:
    """Describe glm4_moe: half-split rotary over half a head, optional qk-norm, leading dense layers."""
    dimensions = read_dimensions(reader, epsilon=1e-5)
    layers = glm4_moe_layers(reader, dimensions, qk_norm=reader.flag("use_qk_norm", False), bias=False)
    return decoder("glm", "glm4_moe", dimensions, layers)


def glm4_moe_layers(
    reader: ConfigReader, dimensions: Dimensions, *, qk_norm: bool, bias: bool, mrope: bool = False
) -> list[LayerSpec]:
    """Read the layers of GLM-4.5 and of the text part of GLM-4.5V; `bias` is the class default of attention_bias."""
    heads = read_heads(reader, dimensions.hidden_size, num_kv_heads=_GLM_KV_HEADS)
    context = RotaryContext(
        head_dim=heads.head_dim, max_positions=dimensions.max_positions, partial=_GLM_ROTARY_SHARE, mrope=mrope
    )
    rotary: RotarySpec = read_rotary(reader, context)
    norm: NormSpec | None = dimensions.norm if qk_norm else None
    mixer = attention(heads, rotary, qkv_bias=reader.flag("attention_bias", bias), qk_norm=norm)
    dense, sparse = read_mlp(reader), glm_experts(reader)
    num_dense = reader.integer("first_k_dense_replace", 1, low=0, high=MAX_LAYERS)
    return [
        attention_layer(mixer, dense if index < num_dense else sparse, dimensions.norm)
        for index in range(dimensions.num_layers)
    ]


def read_layer_mlps(
    reader: ConfigReader, num_layers: int, *, num_dense: int, dense: DenseMlpSpec, sparse: MoeSpec
) -> tuple[DenseMlpSpec | MoeSpec, ...]:
    """Return each layer's feed-forward block: as `mlp_layer_types` says, else `num_dense` dense ones first."""
    kinds = reader.words("mlp_layer_types", length=num_layers, choices=("dense", "sparse"))
    if kinds is None:
        return tuple(dense if index < num_dense else sparse for index in range(num_layers))
    return tuple(dense if kind == "dense" else sparse for kind in kinds)


def glm_experts(reader: ConfigReader, *, scaling: float = 1.0, limit: float | None = None) -> MoeSpec:
    """Read GLM's experts: sigmoid scores in groups, a correction bias for the choice, shared experts."""
    reader.neutral("scoring_func", "sigmoid")
    reader.neutral("topk_method", "noaux_tc")
    reader.neutral("moe_layer_freq", 1)
    reader.accept(("ep_size",))
    num_experts, per_token = _expert_counts(reader, ("n_routed_experts", "num_local_experts", "num_experts"))
    groups = reader.integer("n_group", 1, high=num_experts)
    if num_experts % groups:
        reader.fail("n_group", f"a divisor of the {num_experts} experts")
    width = reader.integer("moe_intermediate_size")
    router = RouterSpec(
        scoring=RouterScoring.SIGMOID,
        correction_bias=True,
        normalise=reader.flag("norm_topk_prob", True),
        scaling_factor=reader.number("routed_scaling_factor", scaling, low=1e-6, high=_MAX_SCALING),
        num_groups=groups,
        top_k_groups=reader.integer("topk_group", 1, high=groups),
    )
    return MoeSpec(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_intermediate_size=width,
        shared_intermediate_size=width * reader.integer("n_shared_experts", 1, low=0, high=MAX_EXPERTS),
        router=router,
        activation=read_activation(reader),
        limit=limit,
    )


def _qwen_experts(reader: ConfigReader) -> MoeSpec:
    num_experts, per_token = _expert_counts(reader, ("num_experts", "num_local_experts"))
    router = RouterSpec(
        scoring=RouterScoring.SOFTMAX, correction_bias=False, normalise=reader.flag("norm_topk_prob", False)
    )
    return MoeSpec(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_intermediate_size=reader.integer("moe_intermediate_size"),
        shared_intermediate_size=0,
        router=router,
        activation=read_activation(reader),
    )


def _expert_counts(reader: ConfigReader, names: tuple[str, ...]) -> tuple[int, int]:
    """Read the number of experts, which has several names, and how many of them run."""
    counts = {name: reader.integer(name, high=MAX_EXPERTS) for name in names if reader.has(name)}
    if not counts:
        raise ModelError(f"config key {reader.label(names[0])!r} is missing: a mixture of experts needs it")
    if len(set(counts.values())) > 1:
        raise ModelError(f"config keys {', '.join(counts)} disagree: {', '.join(map(str, counts.values()))} experts")
    num_experts = next(iter(counts.values()))
    return num_experts, reader.integer("num_experts_per_tok", high=num_experts)
