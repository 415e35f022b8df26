"""Bytes of what layers keep between steps: pure formulas of a description and the KV format.

Per token, kv head and layer, with d = head_dim (src/native/layout.h; a test holds the sums equal):

    f32   2*d*4        bf16   2*d*2        int8, fp8   2*round_up(d, 4) + 2*4: a scale for the key, one for the value

Every position is kept, in sliding layers too: executors free no block behind a window yet, and a plan prices what is
kept. Shared indexer layers keep nothing. Recurrent layers keep a state per sequence, not per token.
"""

from __future__ import annotations

from openautoglm.errors import ConfigError
from openautoglm.spec.arch import (
    ArchSpec,
    AttentionSpec,
    CacheKind,
    IndexerSpec,
    LatentAttentionSpec,
    LayerSpec,
    RecurrentSpec,
)
from openautoglm.spec.formats import KV_NUMBERS, NumberFormat
from openautoglm.spec.plan import BLOCK_TOKENS
from openautoglm.units import round_up

_ELEMENT_BYTES = {NumberFormat.F32: 4, NumberFormat.BF16: 2}
_SCALED_FORMATS = (NumberFormat.INT8, NumberFormat.FP8)  # bytes, and an fp32 scale for each key and value
_KINDS = {
    CacheKind.PAGED: "full attention",
    CacheKind.SLIDING: "sliding window",
    CacheKind.LATENT: "latent",
    CacheKind.LATENT_INDEXED: "latent",
    CacheKind.RECURRENT: "recurrent state",
}
_STATE_BYTES = 4  # recurrent states are fp32


def can_have_kv_format(spec: ArchSpec, kv_format: NumberFormat) -> bool:
    """Return whether this model's cache can have a format: latents have no scaled form."""
    latent = any(isinstance(layer.mixer, LatentAttentionSpec) for layer in spec.layers)
    return kv_format in KV_NUMBERS and not (latent and kv_format in _SCALED_FORMATS)


def check_kv_format(spec: ArchSpec, kv_format: NumberFormat) -> None:
    """Raise `ConfigError` for a format that no cache has, or that this model's cache cannot have."""
    if kv_format not in KV_NUMBERS:
        raise ConfigError(f"no KV cache has the format {kv_format}: choose {' or '.join(KV_NUMBERS)}")
    if not can_have_kv_format(spec, kv_format):
        raise ConfigError(
            f"this model caches latents, which have no {kv_format} form: choose kv {' or '.join(_ELEMENT_BYTES)}"
        )


def kv_bytes_per_token(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of keys and values (or latents) of one token over all layers, without indexer keys.

    Raises `ConfigError` for a format that no cache has, or not this model's.
    """
    check_kv_format(spec, kv_format)
    return sum(_token_bytes(layer, kv_format) for layer in spec.layers)


def kv_bytes_per_token_by_kind(spec: ArchSpec, kv_format: NumberFormat) -> dict[str, int]:
    """Return the bytes of one token's keys and values (or latents) by kind of layer: full, sliding window, latent.

    Kinds that a model does not have are left out; the sum is `kv_bytes_per_token`.
    """
    check_kv_format(spec, kv_format)
    kinds: dict[str, int] = {}
    for layer in spec.layers:
        num_bytes = _token_bytes(layer, kv_format)
        if num_bytes:
            kinds[_KINDS[layer.cache]] = kinds.get(_KINDS[layer.cache], 0) + num_bytes
    return kinds


def indexer_bytes_per_token(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of sparse-attention indexer keys of one token over all layers; 0 for most models."""
    check_kv_format(spec, kv_format)
    indexers = (layer.mixer.indexer for layer in spec.layers if isinstance(layer.mixer, LatentAttentionSpec))
    elements = sum(_indexer_elements(indexer) for indexer in indexers if indexer is not None)
    return elements and elements * _ELEMENT_BYTES[kv_format]


def kv_block_bytes(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of one block of BLOCK_TOKENS tokens over all layers, indexer keys included."""
    return BLOCK_TOKENS * (kv_bytes_per_token(spec, kv_format) + indexer_bytes_per_token(spec, kv_format))


def recurrent_state_bytes(spec: ArchSpec) -> int:
    """Return the bytes of recurrent state of one sequence over all layers, whatever its length; 0 for most models."""
    return _STATE_BYTES * sum(
        _state_elements(layer.mixer) for layer in spec.layers if isinstance(layer.mixer, RecurrentSpec)
    )


def head_token_bytes(kv_format: NumberFormat, head_dim: int) -> int:
    """Return the bytes of one token's key and value of one kv head, scales included."""
    if kv_format in _SCALED_FORMATS:
        return 2 * round_up(head_dim, 4) + 2 * 4
    return 2 * head_dim * _ELEMENT_BYTES[kv_format]


def _token_bytes(layer: LayerSpec, kv_format: NumberFormat) -> int:
    match layer.mixer:
        case AttentionSpec() as attention:
            return attention.num_kv_heads * head_token_bytes(kv_format, attention.head_dim)
        case LatentAttentionSpec() as latent:
            return (latent.kv_rank + latent.rope_head_dim) * _ELEMENT_BYTES[kv_format]
        case RecurrentSpec():
            return 0


def _indexer_elements(indexer: IndexerSpec) -> int:
    if indexer.shared:
        return 0
    return 2 * indexer.head_dim + 1 if indexer.pool_tokens > 1 else indexer.head_dim


def _state_elements(mixer: RecurrentSpec) -> int:
    memory = mixer.num_heads * mixer.key_dim * mixer.value_dim
    convolved = mixer.num_heads * (2 * mixer.key_dim + mixer.value_dim)
    return memory + (mixer.convolution_width - 1) * convolved
