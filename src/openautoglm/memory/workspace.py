"""Bytes of the memory that a step works in: the same sum as src/native/decoder_workspace.cpp, exact by test.

The workspace is set aside whole when a model is loaded and never larger than that, so it is a function of the
description, the formats and the limits of a step. Layers that no executor runs yet (mixtures of experts, latent and
linear attention) are priced as what they would need in the same scheme: an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from openautoglm.spec.arch import (
    ArchSpec,
    AttentionSpec,
    DenseMlpSpec,
    LatentAttentionSpec,
    LayerSpec,
    MoeSpec,
    NormPlacement,
    RecurrentSpec,
    RotarySpec,
)
from openautoglm.spec.formats import ACTIVATION_GROUP, ModelFormats, NumberFormat, WeightFormat
from openautoglm.spec.plan import BLOCK_TOKENS
from openautoglm.units import KIB, round_up

HEAD_ROWS = 32  # most positions whose logits are computed at once
PARTIAL_SLOTS = 1024  # attention partitions whose partial results are held at once
PARTITION_TOKENS = 128
GEMM_SCRATCH_BYTES = 1280 * KIB
PAGE_BYTES = 4096

_ALIGNMENT = 64
_FLOAT = 4
_POINTER = 8
_ATTENTION_ITEM = 16
_STORE_RUN = 12
_RANKING_BLOCK = 64
_MOST_PANEL_ROWS = 16
_MOST_FLUSHES = 4  # scales, or sums, per 128 values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """Elements per token (or per query) of the widest layer."""

    wide: int
    mixed: int
    widest_input: int
    partial: int
    attention_scratch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceBytes:
    """Bytes of a workspace by what they are for; the names are those of `WorkspacePart` in the native core.

    `prefill_chunk` grows with the tokens of a step, `logits` with its rows (32 at most), the rest with the threads.
    `logprobs` is what ranks tokens: for the most likely ones of an answer, and for top-k and top-p.
    """

    prefill_chunk: int
    products: int
    attention: int
    logits: int
    sampling: int
    logprobs: int

    @property
    def total(self) -> int:
        """The whole workspace, in whole pages."""
        parts = self.prefill_chunk + self.products + self.attention + self.logits + self.sampling + self.logprobs
        return round_up(parts, PAGE_BYTES)


def workspace_parts(
    spec: ArchSpec, formats: ModelFormats, *, max_step_tokens: int, max_step_rows: int, num_threads: int
) -> WorkspaceBytes:
    """Return the parts of the workspace of a step of at most `max_step_tokens` tokens in `max_step_rows` rows."""
    widths = _widest(spec)
    hidden = spec.hidden_size
    floats = not _quantised(formats.layers)
    groups = 0 if floats else _num_groups(widths.widest_input)
    head_groups = _num_groups(hidden) if _quantised(formats.head) else 0
    branch = floats or any(layer.placement is NormPlacement.SANDWICH for layer in spec.layers)
    return WorkspaceBytes(
        prefill_chunk=_aligned(max_step_tokens * hidden * _FLOAT)
        + _aligned(max_step_tokens * hidden * _FLOAT * branch)
        + _aligned(max_step_tokens * widths.wide * _FLOAT)
        + _aligned(max_step_tokens * widths.mixed * _FLOAT)
        + _panel_bytes(max_step_tokens, groups)
        + sum(_aligned(max_step_tokens * table.dimensions * _FLOAT) for table in rotary_tables(spec)),
        logits=_panel_bytes(HEAD_ROWS, head_groups)
        + (_aligned(HEAD_ROWS * hidden * _FLOAT) if head_groups == 0 else 0)
        + _aligned(min(HEAD_ROWS, max_step_rows) * spec.vocab_size * _FLOAT),
        attention=(_aligned(PARTIAL_SLOTS * widths.partial * _FLOAT) if num_threads > 1 else 0)
        + _aligned((max_step_tokens + PARTIAL_SLOTS) * _ATTENTION_ITEM)
        + _aligned(max_step_tokens * _STORE_RUN)
        + num_threads * _thread_attention_bytes(spec, widths),
        products=num_threads * _thread_product_bytes(hidden, max(groups, head_groups)),
        sampling=num_threads * (sampler_scratch_bytes(spec.vocab_size) - sampler_ranking_bytes(spec.vocab_size)),
        logprobs=num_threads * sampler_ranking_bytes(spec.vocab_size),
    )


def workspace_bytes(
    spec: ArchSpec, formats: ModelFormats, *, max_step_tokens: int, max_step_rows: int, num_threads: int
) -> int:
    """Return the bytes of the workspace of a step of at most `max_step_tokens` tokens in `max_step_rows` rows."""
    return workspace_parts(
        spec, formats, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows, num_threads=num_threads
    ).total


def rotary_tables(spec: ArchSpec) -> tuple[RotarySpec, ...]:
    """Return the different rotary embeddings of a model's layers, in order of first use."""
    mixers = (layer.mixer for layer in spec.layers)
    tables = (mixer.rotary for mixer in mixers if not isinstance(mixer, RecurrentSpec))
    return tuple(dict.fromkeys(table for table in tables if table is not None))


def _thread_product_bytes(hidden: int, groups: int) -> int:
    """Return one thread's scratch for products: a row of activations, rows on their way into panels."""
    return (
        _aligned(hidden * _FLOAT)
        + _aligned(_MOST_PANEL_ROWS * groups * ACTIVATION_GROUP)
        + _aligned(_MOST_PANEL_ROWS * groups * _FLOAT)
        + _aligned(_MOST_PANEL_ROWS * groups * 4 * _FLOAT)
        + _panel_bytes(1, groups)
        + GEMM_SCRATCH_BYTES
    )


def _thread_attention_bytes(spec: ArchSpec, widths: _Widths) -> int:
    """Return one thread's scratch for attention: queries, scores, results, and the blocks' addresses."""
    return _aligned(widths.attention_scratch_bytes) + _aligned(-(-spec.max_positions // BLOCK_TOKENS) * _POINTER)


def sampler_scratch_bytes(vocab_size: int) -> int:
    """Return a thread's scratch for choosing tokens: values, counts, ranking keys and block maxima."""
    return 2 * _aligned(vocab_size * _FLOAT) + sampler_ranking_bytes(vocab_size)


def sampler_ranking_bytes(vocab_size: int) -> int:
    """Return the share of it that ranks tokens: keys and block maxima."""
    return _aligned(vocab_size * 8) + _aligned(-(-vocab_size // _RANKING_BLOCK) * _FLOAT)


def _panel_bytes(num_rows: int, num_groups: int) -> int:
    """Return the bytes of quantised rows in panels: values, and scales and sums of each 32 of them at most."""
    factors = _aligned(num_rows * num_groups * _MOST_FLUSHES * _FLOAT)
    return _aligned(num_rows * num_groups * ACTIVATION_GROUP) + 2 * factors


def _attention_scratch_bytes(head_dim: int) -> int:
    return _FLOAT * (112 * round_up(head_dim, 16) + 32 * PARTITION_TOKENS + 96) + 512


def _widest(spec: ArchSpec) -> _Widths:
    layers = [_layer_widths(layer, spec.hidden_size) for layer in dict.fromkeys(spec.layers)]
    return _Widths(
        wide=max(layer.wide for layer in layers),
        mixed=max(layer.mixed for layer in layers),
        widest_input=max(layer.widest_input for layer in layers),
        partial=max(layer.partial for layer in layers),
        attention_scratch_bytes=max(layer.attention_scratch_bytes for layer in layers),
    )


def _layer_widths(layer: LayerSpec, hidden_size: int) -> _Widths:
    match layer.mixer:
        case AttentionSpec() as mixer:
            mixed = mixer.num_heads * mixer.head_dim
            wide = mixed + 2 * mixer.num_kv_heads * mixer.head_dim
            head_dim, group_heads = mixer.head_dim, mixer.num_heads // mixer.num_kv_heads
        case LatentAttentionSpec() as mixer:
            head_dim, group_heads = mixer.kv_rank + mixer.rope_head_dim, mixer.num_heads
            mixed = mixer.num_heads * mixer.value_head_dim
            wide = mixer.num_heads * head_dim + head_dim + (mixer.query_rank or 0)
        case RecurrentSpec() as mixer:
            head_dim, group_heads = mixer.value_dim, 1
            mixed = mixer.num_heads * mixer.value_dim
            wide = 2 * mixer.num_heads * mixer.key_dim + mixed
        case _:
            assert_never(layer.mixer)
    intermediate = _intermediate_size(layer.mlp)
    return _Widths(
        wide=max(wide, intermediate),
        mixed=mixed,
        widest_input=max(hidden_size, mixed, intermediate),
        partial=group_heads * (head_dim + 2),
        attention_scratch_bytes=_attention_scratch_bytes(head_dim),
    )


def _intermediate_size(mlp: DenseMlpSpec | MoeSpec) -> int:
    match mlp:
        case DenseMlpSpec():
            return mlp.intermediate_size
        case MoeSpec():
            return mlp.experts_per_token * mlp.expert_intermediate_size + mlp.shared_intermediate_size
        case _:
            assert_never(mlp)


def _quantised(weight_format: WeightFormat) -> bool:
    return weight_format.number not in (NumberFormat.F32, NumberFormat.BF16)


def _num_groups(num_inputs: int) -> int:
    return -(-num_inputs // ACTIVATION_GROUP)


def _aligned(num_bytes: int) -> int:
    return round_up(num_bytes, _ALIGNMENT)
