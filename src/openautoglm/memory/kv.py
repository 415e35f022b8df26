"""Bytes of what layers keep between steps: pure formulas of a description and the KV format.

Every position is kept, in sliding layers too: executors free no block behind a window yet, and a plan prices what is
kept. Shared indexer layers keep nothing. Recurrent layers keep a state per sequence, not per token.
"""

from __future__ import annotations

from openautoglm.errors import ConfigError
from openautoglm.spec.arch import ArchSpec, AttentionSpec, IndexerSpec, LatentAttentionSpec, LayerSpec, RecurrentSpec
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.plan import BLOCK_TOKENS

_ELEMENT_BYTES = {NumberFormat.F32: 4, NumberFormat.BF16: 2}
_STATE_BYTES = 4  # recurrent states are fp32


def kv_bytes_per_token(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of keys and values (or latents) of one token over all layers, without indexer keys.

    Raises `ConfigError` for a format that no cache has.
    """
    return _element_bytes(kv_format) * sum(_token_elements(layer) for layer in spec.layers)


def indexer_bytes_per_token(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of sparse-attention indexer keys of one token over all layers; 0 for most models."""
    indexers = (layer.mixer.indexer for layer in spec.layers if isinstance(layer.mixer, LatentAttentionSpec))
    return _element_bytes(kv_format) * sum(_indexer_elements(indexer) for indexer in indexers if indexer is not None)


def kv_block_bytes(spec: ArchSpec, kv_format: NumberFormat) -> int:
    """Return the bytes of one block of BLOCK_TOKENS tokens over all layers, indexer keys included."""
    return BLOCK_TOKENS * (kv_bytes_per_token(spec, kv_format) + indexer_bytes_per_token(spec, kv_format))


def recurrent_state_bytes(spec: ArchSpec) -> int:
    """Return the bytes of recurrent state of one sequence over all layers, whatever its length; 0 for most models."""
    return _STATE_BYTES * sum(
        _state_elements(layer.mixer) for layer in spec.layers if isinstance(layer.mixer, RecurrentSpec)
    )


def _element_bytes(kv_format: NumberFormat) -> int:
    if kv_format not in _ELEMENT_BYTES:
        raise ConfigError(f"no KV cache has the format {kv_format}: choose {' or '.join(_ELEMENT_BYTES)}")
    return _ELEMENT_BYTES[kv_format]


def _token_elements(layer: LayerSpec) -> int:
    match layer.mixer:
        case AttentionSpec() as attention:
            return 2 * attention.num_kv_heads * attention.head_dim
        case LatentAttentionSpec() as latent:
            return latent.kv_rank + latent.rope_head_dim
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
