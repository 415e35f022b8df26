"""What the families share: reading dimensions, and assembling a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openautoglm.families.config_reader import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    ConfigReader,
    require_multiple,
)
from openautoglm.families.features import with_features
from openautoglm.families.rope import stretched_positions
from openautoglm.spec.arch import (
    Activation,
    ArchSpec,
    AttentionSpec,
    CacheKind,
    DenseMlpSpec,
    LayerSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    RotarySpec,
)

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_NEW,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu2": Activation.RELU_SQUARED,
}
MAX_WINDOW = MAX_POSITIONS
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """The sizes that every decoder has; `norm` is that of its layers.

    `max_positions` is what the file says, `stretched_positions` what its rotary scaling makes of that.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int
    max_positions: int
    stretched_positions: int
    norm: NormSpec
    tied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Query heads, key-value heads and their size."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def read_dimensions(
    reader: ConfigReader,
    *,
    epsilon: float = 1e-6,
    epsilon_key: str = "rms_norm_eps",
    kind: NormKind = NormKind.RMS,
    weight_offset: float = 0.0,
    tied: bool = False,
) -> Dimensions:
    """Read the sizes of a decoder; `epsilon` and `tied` are the class defaults of the model type.

    Multi-token-prediction layers are understood wherever they are declared, and left out of the decoder.
    """
    for name in MTP_KEYS:
        reader.integer(name, 0, low=0, high=MAX_LAYERS)
    max_positions = reader.integer("max_position_embeddings", high=MAX_POSITIONS)
    return Dimensions(
        hidden_size=reader.integer("hidden_size"),
        num_layers=reader.integer("num_hidden_layers", high=MAX_LAYERS),
        vocab_size=reader.integer("vocab_size"),
        max_positions=max_positions,
        stretched_positions=stretched_positions(reader, max_positions),
        norm=NormSpec(
            kind=kind, epsilon=reader.number(epsilon_key, epsilon, low=1e-30, high=1.0), weight_offset=weight_offset
        ),
        tied=reader.flag("tie_word_embeddings", tied),
    )


def read_heads(
    reader: ConfigReader, hidden_size: int, *, num_kv_heads: int | None = None, head_dim: int | None = None
) -> Heads:
    """Read attention heads.

    `num_kv_heads` and `head_dim` are the class defaults where the file says nothing; None means one key-value head
    per query head, and heads that share the hidden size.
    """
    num_heads = reader.integer("num_attention_heads", high=MAX_HEADS)
    kv_heads = reader.optional_integer("num_key_value_heads", num_kv_heads, high=MAX_HEADS) or num_heads
    require_multiple(reader, "num_key_value_heads", whole=num_heads, part=kv_heads, of="num_attention_heads")
    if head_dim is None:
        size = reader.optional_integer("head_dim", high=MAX_HEAD_DIM)
    else:
        size = reader.integer("head_dim", head_dim, high=MAX_HEAD_DIM)
    if size is None:
        size = shared_head_dim(reader, hidden_size, num_heads)
    return Heads(num_heads=num_heads, num_kv_heads=kv_heads, head_dim=size)


def shared_head_dim(reader: ConfigReader, hidden_size: int, num_heads: int) -> int:
    """Return the size of heads that share the hidden size between them."""
    require_multiple(reader, "num_attention_heads", whole=hidden_size, part=num_heads, of="hidden_size")
    if hidden_size // num_heads > MAX_HEAD_DIM:
        reader.fail("num_attention_heads", f"at least {hidden_size // MAX_HEAD_DIM}: heads are too large otherwise")
    return hidden_size // num_heads


def read_activation(reader: ConfigReader, key: str = "hidden_act", default: str = "silu") -> Activation:
    """Read the MLP's activation."""
    return ACTIVATIONS[reader.choice(key, default, ACTIVATIONS)]


def read_mlp(reader: ConfigReader, *, bias: bool = False, gated: bool = True, activation: str = "silu") -> DenseMlpSpec:
    """Read a dense feed-forward block."""
    return DenseMlpSpec(
        intermediate_size=reader.integer("intermediate_size"),
        activation=read_activation(reader, default=activation),
        gated=gated,
        bias=bias,
    )


def attention(
    heads: Heads,
    rotary: RotarySpec | None,
    *,
    qkv_bias: bool,
    output_bias: bool = False,
    qk_norm: NormSpec | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> AttentionSpec:
    """Return grouped-query attention, scaled by head_dim^-0.5 unless told otherwise."""
    return AttentionSpec(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        scale=heads.head_dim**-0.5 if scale is None else scale,
        rotary=rotary,
        qk_norm=qk_norm,
        window=window,
    )


def attention_layer(
    mixer: AttentionSpec,
    mlp: DenseMlpSpec | MoeSpec,
    norm: NormSpec,
    placement: NormPlacement = NormPlacement.PRE,
) -> LayerSpec:
    """Return a layer of grouped-query attention with the cache that its window asks for."""
    cache = CacheKind.PAGED if mixer.window is None else CacheKind.SLIDING
    return LayerSpec(mixer=mixer, mlp=mlp, norm=norm, placement=placement, cache=cache)


def decoder(family: str, model_type: str, dimensions: Dimensions, layers: Sequence[LayerSpec]) -> ArchSpec:
    """Return a decoder of the given layers; its final norm is that of the layers."""
    return with_features(
        ArchSpec(
            family=family,
            model_type=model_type,
            layers=tuple(layers),
            hidden_size=dimensions.hidden_size,
            vocab_size=dimensions.vocab_size,
            max_positions=dimensions.stretched_positions,
            tied_embeddings=dimensions.tied,
            final_norm=dimensions.norm,
        )
    )


def read_layer_types(
    reader: ConfigReader, num_layers: int, *, window: int | None, first_sliding: int
) -> tuple[int | None, ...]:
    """Return each layer's window: as `layer_types` says, else `window` from layer `first_sliding` on."""
    types = reader.words("layer_types", length=num_layers, choices=("full_attention", "sliding_attention"))
    if types is None:
        return tuple(window if index >= first_sliding else None for index in range(num_layers))
    if "sliding_attention" in types and window is None:
        reader.fail("layer_types", "all full_attention where no sliding window is in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
