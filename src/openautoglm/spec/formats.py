"""Number formats of weights, activations and the KV cache, and their exact packed sizes.

Packed weights are tiles of 32 output features over the whole input dimension K, padded to 128 for the quantised
formats (zero padding costs nothing in exactness). Sizes are in bytes per tile of 32 outputs:

    f32    32*K*4
    bf16   32*round_up(K, 2)*2
    int8   32*Kp + 32*4                               Kp = round_up(K, 128); one fp32 scale per output
    int4   per 128 of K: 2048 + 64*(128/g) + 32*(128/g), rounded up to 64   fp16 scales, u8 zero points per group g
    nf4    per 128 of K: 2048 + 64*(128/g), rounded up to 64                fp16 scales per group g
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from openautoglm.errors import ConfigError
from openautoglm.units import round_up

# Any change of packed bytes (order in a tile, rounding of scales, choice of clips) counts it up: cached files of packed
# weights are known by it.
PACKED_LAYOUT_VERSION = 1
TILE_OUTPUTS = 32
ACTIVATION_GROUP = 128


class NumberFormat(StrEnum):
    """How numbers are stored."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"
    FP8 = "fp8"  # e4m3, KV caches only


WEIGHT_NUMBERS = tuple(number for number in NumberFormat if number is not NumberFormat.FP8)
KV_NUMBERS = (NumberFormat.BF16, NumberFormat.F32, NumberFormat.INT8, NumberFormat.FP8)


class ActivationScale(StrEnum):
    """Granularity of the int8 activation scales."""

    GROUP = "group"
    TOKEN = "token"  # noqa: S105 - a granularity, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Format of a packed matrix; `group` is the number of input features that share a scale (int4, nf4 only)."""

    number: NumberFormat
    group: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no format of weights with `ConfigError`."""
        if self.number not in WEIGHT_NUMBERS:
            raise ConfigError(
                f"{self.number} is a format of the KV cache, not of weights: choose {', '.join(WEIGHT_NUMBERS)} for "
                f"weights, or kv {self.number}"
            )

    def __str__(self) -> str:
        """Return the short name, such as "int4-g64"."""
        return f"{self.number}-g{self.group}" if self.group else str(self.number)

    def packed_bytes(self, num_outputs: int, num_inputs: int) -> int:
        """Return the exact bytes of a packed [num_outputs, num_inputs] matrix."""
        tiles = round_up(num_outputs, TILE_OUTPUTS) // TILE_OUTPUTS
        return tiles * self._tile_bytes(num_inputs)

    def _tile_bytes(self, num_inputs: int) -> int:
        padded = round_up(num_inputs, ACTIVATION_GROUP)
        match self.number:
            case NumberFormat.F32:
                return TILE_OUTPUTS * num_inputs * 4
            case NumberFormat.BF16:
                return TILE_OUTPUTS * round_up(num_inputs, 2) * 2
            case NumberFormat.INT8:
                return TILE_OUTPUTS * padded + TILE_OUTPUTS * 4
            case NumberFormat.INT4 | NumberFormat.NF4:
                groups = ACTIVATION_GROUP // self.group
                inline_bytes = (96 if self.number is NumberFormat.INT4 else 64) * groups
                return padded // ACTIVATION_GROUP * round_up(2048 + inline_bytes, 64)
            case NumberFormat.FP8:
                raise AssertionError("refused when the format was made")


class AttentionArithmetic(StrEnum):
    """How attention multiplies: as fast as the processor can, or so that every instruction set gives equal bytes."""

    FASTEST = "fastest"
    PORTABLE = "portable"


WEIGHT_GROUPS = (32, 64, 128)
DEFAULT_WEIGHT_GROUP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFormats:
    """The formats of one load: layer matrices, output head and embedding table, KV cache, activations.

    With tied embeddings head and table are one matrix, and `head` is its format.
    """

    layers: WeightFormat
    head: WeightFormat
    embedding: WeightFormat
    kv: NumberFormat
    activations: ActivationScale = ActivationScale.GROUP
    attention: AttentionArithmetic = AttentionArithmetic.FASTEST

    @classmethod
    def for_quantisation(
        cls,
        quant: NumberFormat,
        *,
        group: int | None = None,
        activations: ActivationScale = ActivationScale.GROUP,
        attention: AttentionArithmetic = AttentionArithmetic.FASTEST,
        kv: NumberFormat | None = None,
    ) -> ModelFormats:
        """Return the stated defaults: quantised models keep head and embeddings in int8; the KV cache is bf16, with f32
        weights f32. Raises `ConfigError` for numbers that are no format of weights.
        """
        if quant in (NumberFormat.INT4, NumberFormat.NF4):
            layers = WeightFormat(number=quant, group=group or DEFAULT_WEIGHT_GROUP)
        else:
            layers = WeightFormat(number=quant)
        edges = layers if quant in (NumberFormat.F32, NumberFormat.BF16) else WeightFormat(number=NumberFormat.INT8)
        if kv is None:
            kv = NumberFormat.F32 if quant is NumberFormat.F32 else NumberFormat.BF16
        return cls(layers=layers, head=edges, embedding=edges, kv=kv, activations=activations, attention=attention)
