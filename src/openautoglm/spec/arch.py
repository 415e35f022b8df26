"""What a model is: frozen descriptions that every layer above reads and nothing mutates.

An `ArchSpec` is a tuple of `LayerSpec`s plus embeddings, head and scales. Describing is separate from running:
every published shape can be described; what an executor cannot run it names through `Executor.supports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NormKind(StrEnum):
    """Normalisation: root mean square, or layer norm with bias."""

    RMS = "rms"
    LAYER = "layer"


class NormPlacement(StrEnum):
    """Where a layer normalises: before each block, before and after each, or once for parallel blocks."""

    PRE = "pre"
    SANDWICH = "sandwich"
    PARALLEL = "parallel"


class Activation(StrEnum):
    """The MLP's non-linearity."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU_NEW = "gelu_new"
    GELU = "gelu"
    RELU_SQUARED = "relu_squared"


class CacheKind(StrEnum):
    """What a layer keeps between steps."""

    PAGED = "paged"
    SLIDING = "sliding"
    LATENT = "latent"
    LATENT_INDEXED = "latent_indexed"
    RECURRENT = "recurrent"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """A normalisation: `x / rms(x) * (weight + weight_offset)`; gemma stores weight - 1 (offset 1)."""

    kind: NormKind = NormKind.RMS
    epsilon: float
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySpec:
    """Rotary embedding of the first `dimensions` of a head.

    `inverse_frequencies` holds dimensions/2 angles per position, scaling (llama3, yarn, linear) already applied;
    `attention_factor` multiplies cosine and sine. `interleaved` pairs (0,1),(2,3).. instead of (i, i+d/2).
    `kind` is the checkpoint's rope_type; kinds whose frequencies depend on the length (dynamic, longrope) are
    described by their short form and refused by executors. `mrope_sections` are M-RoPE's (t, h, w) widths.
    """

    dimensions: int
    interleaved: bool
    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0
    kind: str = "default"
    mrope_sections: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention; `scale` multiplies q.k; `window` is the number of visible positions, self included."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    scale: float
    rotary: RotarySpec | None
    qk_norm: NormSpec | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSpec:
    """Sparse-attention indexer of DSA; `shared` layers reuse the choice of the last full one and cache nothing.

    A full layer keeps one key of `head_dim` per token. With `pool_tokens` above 1 (GLM-5.3) it scores pools of so many
    tokens and keeps a key, a gate of the same width and a validity mark per token.
    """

    num_heads: int
    head_dim: int
    top_k: int
    shared: bool = False
    pool_tokens: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionSpec:
    """Multi-head latent attention (MLA); `query_rank` None means a full query projection."""

    num_heads: int
    query_rank: int | None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    qkv_bias: bool
    scale: float
    rotary: RotarySpec | None
    latent_norm: NormSpec
    indexer: IndexerSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSpec:
    """Linear-attention mixer (KDA): state of num_heads x key_dim x value_dim floats, independent of the length.

    Queries, keys and values pass a causal convolution over `convolution_width` tokens, whose last inputs are state
    too. Decay and output gates are projections of rank `gate_rank`.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    convolution_width: int
    gate_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlpSpec:
    """Feed-forward block; gated: down(act(gate(x)) * up(x)), else down(act(up(x))).

    `limit` clamps gate (above) and up (both sides) before the product.
    """

    intermediate_size: int
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False
    limit: float | None = None


class RouterScoring(StrEnum):
    """How router logits become weights."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Mixture-of-experts routing; a correction bias changes the choice only, never the weights."""

    scoring: RouterScoring
    correction_bias: bool
    normalise: bool
    scaling_factor: float = 1.0
    num_groups: int = 1
    top_k_groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """Mixture of experts: `num_experts` gated MLPs of which `experts_per_token` run, plus shared ones."""

    num_experts: int
    experts_per_token: int
    expert_intermediate_size: int
    shared_intermediate_size: int
    router: RouterSpec
    activation: Activation = Activation.SILU
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One decoder layer; `extra_parameters` are those that no field explains (hyper-connections), kept in fp32."""

    mixer: AttentionSpec | LatentAttentionSpec | RecurrentSpec
    mlp: DenseMlpSpec | MoeSpec
    norm: NormSpec
    placement: NormPlacement
    cache: CacheKind
    extra_parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSpec:
    """A tower beside the decoder (vision), known by its size until an executor runs it."""

    kind: str
    num_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """A whole model.

    `features` names what goes beyond a plain decoder of grouped-query attention and gated SiLU MLPs (for example
    "vision tower"); it is empty for plain ones, sliding windows, sandwich norms and qk-norms included. The residual
    flows in `residual_streams` copies (hyper-connections); 1 is the ordinary decoder.
    """

    family: str
    model_type: str
    layers: tuple[LayerSpec, ...]
    hidden_size: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    final_norm: NormSpec
    embedding_scale: float = 1.0
    head_bias: bool = False
    towers: tuple[TowerSpec, ...] = ()
    features: tuple[str, ...] = ()
    residual_streams: int = 1
    extra_parameters: int = 0

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)
