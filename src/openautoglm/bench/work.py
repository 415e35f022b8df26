"""What a step must do at least: operations by kind and bytes read, from the architecture and the formats alone.

The share of the roofline is T_min / T. A prefill is bound by arithmetic: T_min = matrix operations / peak of their
format + attention operations / peak of the KV cache's (int8, bf16, f32; fp8 is widened to f32). Decoding is bound by
either: T_min = max(bytes read / bandwidth, operations over their peaks). Bytes are each weight once, the head included,
and every visible key and value. What a kernel does beyond that (an int8 cache multiplies values by weights in two
pieces) is not counted: the limit is the problem's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from openautoglm.bench.roofline import Roofline
from openautoglm.memory.kv import head_token_bytes
from openautoglm.memory.shapes import embedding_matrix, layer_matrices
from openautoglm.memory.weights import weight_bytes
from openautoglm.spec.arch import ArchSpec, AttentionSpec, LayerSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat

_INTEGERS = (NumberFormat.INT8, NumberFormat.INT4, NumberFormat.NF4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Multiplications and additions per kind of unit, and bytes read from memory."""

    int8_operations: int
    bf16_operations: int
    f32_operations: int
    bytes_read: int

    def arithmetic_seconds(self, roofline: Roofline) -> float:
        """Return the least time for the operations at the machine's peaks."""
        return (
            self.int8_operations / roofline.int8_operations_per_second
            + self.bf16_operations / roofline.bf16_operations_per_second
            + self.f32_operations / roofline.f32_operations_per_second
        )

    def least_seconds(self, roofline: Roofline, read_bytes_per_second: float | None = None) -> float:
        """Return T_min: arithmetic and reading overlap at best. The bandwidth is the roofline's if none is given."""
        bandwidth = read_bytes_per_second or roofline.read_bytes_per_second
        return max(self.arithmetic_seconds(roofline), self.bytes_read / bandwidth)


def step_work(spec: ArchSpec, formats: ModelFormats, rows: Sequence[tuple[int, int]], num_sampled: int) -> Work:
    """Return the work of one step of `rows`, each (tokens already in the cache, new tokens); the head runs
    `num_sampled` times. Attention counts visible keys only (causal, within the window)."""
    operations = dict.fromkeys(NumberFormat, 0)
    num_tokens = sum(new for _, new in rows)
    kv_bytes = 0
    for layer, repeats in Counter(spec.layers).items():
        parameters = sum(matrix.num_active_parameters for matrix in layer_matrices(layer, spec.hidden_size))
        operations[formats.layers.number] += repeats * 2 * num_tokens * parameters
        keys = sum(_visible_keys(layer, old, new) for old, new in rows)
        # Scores and the weighted sum of values are products of head_dim each, in the units of the cache's format.
        operations[formats.kv] += repeats * 4 * keys * _query_width(layer)
        kept = sum(_kept_keys(layer, old + new) for old, new in rows)
        kv_bytes += repeats * kept * _kv_bytes(layer, formats.kv)
    operations[formats.head.number] += 2 * num_sampled * embedding_matrix(spec).num_parameters
    weights = weight_bytes(spec, formats)
    return Work(
        int8_operations=sum(operations[number] for number in _INTEGERS),
        bf16_operations=operations[NumberFormat.BF16],
        # an fp8 cache is widened to fp32
        f32_operations=operations[NumberFormat.F32] + operations[NumberFormat.FP8],
        bytes_read=weights.layers + weights.norms + (weights.head if num_sampled else 0) + kv_bytes,
    )


def _attention(layer: LayerSpec) -> AttentionSpec:
    assert isinstance(layer.mixer, AttentionSpec), "the executor runs attention layers only"
    return layer.mixer


def _query_width(layer: LayerSpec) -> int:
    attention = _attention(layer)
    return attention.num_heads * attention.head_dim


def _kv_bytes(layer: LayerSpec, kv_format: NumberFormat) -> int:
    attention = _attention(layer)
    return attention.num_kv_heads * head_token_bytes(kv_format, attention.head_dim)


def _kept_keys(layer: LayerSpec, length: int) -> int:
    window = _attention(layer).window
    return length if window is None else min(length, window)


def _visible_keys(layer: LayerSpec, old: int, new: int) -> int:
    """Return the sum over new tokens at positions old..old+new-1 of the keys that each sees, itself included."""
    window = _attention(layer).window
    if window is None or old + new <= window:
        return new * old + new * (new + 1) // 2
    return sum(min(position + 1, window) for position in range(old, old + new))
