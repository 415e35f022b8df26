"""Which checkpoint tensors make up which canonical tensor, and in what order of rows.

Families write a `WeightMap`; the loader streams it. Loading normalises to one internal layout: query, key and value
fused; gate and up rows alternating; interleaved rotary rows permuted to half-split, so that the decoder has one path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MatrixRole(StrEnum):
    """Canonical matrices, all [outputs, inputs]; layer roles stand once per layer."""

    EMBEDDING = "embedding"
    HEAD = "head"
    QKV = "qkv"
    ATTENTION_OUTPUT = "attention_output"
    GATE_UP = "gate_up"
    DOWN = "down"


class VectorRole(StrEnum):
    """Canonical vectors. PRE_MLP_NORM follows the mixer's residual; POST_* norms exist in sandwich layers only."""

    INPUT_NORM = "input_norm"
    POST_MIXER_NORM = "post_mixer_norm"
    PRE_MLP_NORM = "pre_mlp_norm"
    POST_MLP_NORM = "post_mlp_norm"
    QKV_BIAS = "qkv_bias"
    ATTENTION_OUTPUT_BIAS = "attention_output_bias"
    GATE_UP_BIAS = "gate_up_bias"
    DOWN_BIAS = "down_bias"
    QUERY_NORM = "query_norm"
    KEY_NORM = "key_norm"
    FINAL_NORM = "final_norm"
    HEAD_BIAS = "head_bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryPermutation:
    """Rows of each head of `head_dim`: the first `rotary_dims` go from pairs (0,1),(2,3).. to (0,2,4..,1,3,5..)."""

    head_dim: int
    rotary_dims: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """Rows [row_begin, row_end) of a checkpoint tensor of `shape` (as it must stand on disk)."""

    name: str
    shape: tuple[int, ...]
    row_begin: int
    row_end: int
    permutation: RotaryPermutation | None = None

    @property
    def num_rows(self) -> int:
        """Rows taken."""
        return self.row_end - self.row_begin


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixBinding:
    """A canonical matrix: its parts stacked in order, or alternating row by row (`interleaved`: gate, up)."""

    role: MatrixRole
    layer: int | None
    parts: tuple[TensorPart, ...]
    interleaved: bool = False

    @property
    def num_outputs(self) -> int:
        """Output features."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_inputs(self) -> int:
        """Input features."""
        return self.parts[0].shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBinding:
    """A canonical vector: its parts joined in order, or alternating (`interleaved`)."""

    role: VectorRole
    layer: int | None
    parts: tuple[TensorPart, ...]
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMap:
    """Everything that a load reads. `ignored` are checkpoint tensors that are left out on purpose (rotary tables,
    multi-token-prediction layers); any other tensor is unexpected and refused. Tied embeddings have no HEAD binding.
    """

    matrices: tuple[MatrixBinding, ...]
    vectors: tuple[VectorBinding, ...]
    ignored: tuple[str, ...] = ()
