"""The least time that the machine needs for a measured step of any engine, from the architecture and bits alone."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.bench.roofline import Roofline
from openautoglm.memory.shapes import embedding_matrix, layer_matrices
from openautoglm.spec.arch import ArchSpec, AttentionSpec
from peers.protocol import Job
from peers.variants import Bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Operations of matrices and of attention, and bytes read once each."""

    matrix_operations: int
    attention_operations: int
    bytes_read: float
    unit: str

    def least_seconds(self, roofline: Roofline) -> float:
        """Return T_min: arithmetic and reading overlap at best; attention runs in bf16 units, or f32 beside f32."""
        peaks = {
            "int8": roofline.int8_operations_per_second,
            "bf16": roofline.bf16_operations_per_second,
            "f32": roofline.f32_operations_per_second,
        }
        attention_peak = peaks["f32" if self.unit == "f32" else "bf16"]
        arithmetic = self.matrix_operations / peaks[self.unit] + self.attention_operations / attention_peak
        return max(arithmetic, self.bytes_read / roofline.read_bytes_per_second)


def prefill_need(spec: ArchSpec, bits: Bits, job: Job) -> Need:
    """Return what a prompt needs; the head runs for its last token."""
    return _need(spec, bits, batch=1, num_new=job.prefill_tokens, num_cached=0)


def decode_need(spec: ArchSpec, bits: Bits, job: Job, batch: int) -> Need:
    """Return what a step of decoding needs, halfway through the answers."""
    middle = job.decode_prompt_tokens + job.decode_new_tokens // 2
    return _need(spec, bits, batch=batch, num_new=1, num_cached=middle)


def _need(spec: ArchSpec, bits: Bits, *, batch: int, num_new: int, num_cached: int) -> Need:
    layers = sum(
        matrix.num_active_parameters for layer in spec.layers for matrix in layer_matrices(layer, spec.hidden_size)
    )
    head = embedding_matrix(spec).num_parameters
    visible = num_new * num_cached + num_new * (num_new + 1) // 2
    kept = num_cached + num_new
    attention_operations, kv_elements = 0, 0
    for layer in spec.layers:
        mixer = layer.mixer
        assert isinstance(mixer, AttentionSpec), "the shapes here have attention in every layer"
        assert mixer.window is None, "the shapes here attend to everything"
        # Scores and the weighted sum of values: a multiplication and an addition each.
        attention_operations += 4 * visible * mixer.num_heads * mixer.head_dim
        kv_elements += 2 * kept * mixer.num_kv_heads * mixer.head_dim
    return Need(
        matrix_operations=2 * batch * (num_new * layers + head),
        attention_operations=batch * attention_operations,
        bytes_read=(layers * bits.layers + head * bits.head + batch * kv_elements * bits.kv) / 8,
        unit=bits.unit,
    )
