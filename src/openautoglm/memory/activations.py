"""Bytes that a forward pass keeps for its backward pass, operation by operation as transformers' models run in torch.

After Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models), section 4, which counts
the same for layer norms and two matrices per MLP. Here, for N tokens, d bytes an activation, width h, queries q, keys
and values k each, MLP i:

    each RMS norm     4 Nh its input in fp32, 4 N, and d Nh before the weight where that is trained
    projections       d Nh, the input that query, key and value share, where they are trained
    attention         d N (q + 2k) rotated queries, keys, values; d Nq and 4 N per head of results (fused, no scores);
                      d Nq more where only a part of a head is rotated: results are copied into order for the output
    gated MLP         d Nh input and d Ni product, where trained; d Ni each of gate, its activation and up
    loss              N V (d + 12): logits; in fp32 their log-softmax, the loss's gradient, the log-softmax's gradient

With checkpointing a layer keeps d Nh, its input, and one layer at a time is computed again. Adapters keep their input
in fp32 (a copy where the model is bf16) and N * rank. Mixtures of experts, latent and linear attention are estimates in
the same scheme that nothing was measured against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openautoglm.memory.shapes import NUM_NORMS, mixer_matrices, mlp_matrices
from openautoglm.spec.arch import (
    ArchSpec,
    AttentionSpec,
    DenseMlpSpec,
    LatentAttentionSpec,
    LayerSpec,
    RecurrentSpec,
)

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationShape:
    """What the activations of a step depend on; `num_tokens` are all of the batch, `lora_rank` 0 without adapters.

    Models with windows are `masked`: every layer keeps a mask, and transformers then repeats keys and values to as many
    heads as queries have.
    """

    num_tokens: int
    seq_tokens: int
    item_bytes: int
    trains_weights: bool
    lora_rank: int
    lora_targets: tuple[str, ...]
    checkpointing: bool
    masked: bool


def activation_bytes(spec: ArchSpec, shape: ActivationShape) -> int:
    """Return what the forward pass keeps, without the loss's logits; what is computed again is in `working_bytes`."""
    tokens, item = shape.num_tokens, shape.item_bytes
    hidden = spec.hidden_size
    if shape.checkpointing:
        layers = spec.num_layers * tokens * hidden * item
    else:
        layers = sum(_layer_bytes(layer, hidden, shape) for layer in spec.layers)
    final = _norm_bytes(hidden, shape) + (tokens * hidden * item if shape.trains_weights else 0)
    return layers + final + _rotary_bytes(spec, shape) + 2 * tokens * 8  # token ids and labels


def loss_bytes(spec: ArchSpec, shape: ActivationShape) -> int:
    """Return the most that logits and their gradients take at once."""
    return shape.num_tokens * spec.vocab_size * (shape.item_bytes + 3 * _FLOAT)


def working_bytes(spec: ArchSpec, shape: ActivationShape) -> int:
    """Return what a layer's backward pass takes beside what was kept: gradients of its own activations.

    With checkpointing its activations, computed again, come on top.
    """
    tokens, hidden = shape.num_tokens, spec.hidden_size
    worst_bytes = 0
    for layer in dict.fromkeys(spec.layers):
        again = _layer_bytes(layer, hidden, shape) if shape.checkpointing else 0
        wide = max(3 * _mlp_width(layer), _mixer_width(layer))
        worst_bytes = max(worst_bytes, again + tokens * (wide * shape.item_bytes + 3 * hidden * _FLOAT))
    return worst_bytes


def layer_tensors(layer: LayerSpec, hidden: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield (target, outputs, inputs, count) of a layer's matrices as checkpoints have them, apart and not fused.

    The name is that of an adapter's target; empty for what adapters leave alone (experts, routers).
    """
    mixer = layer.mixer
    if isinstance(mixer, AttentionSpec):
        query, key = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        yield "q", query, hidden, 1
        yield "k", key, hidden, 1
        yield "v", key, hidden, 1
        yield "o", hidden, query, 1
    else:
        for index, matrix in enumerate(mixer_matrices(mixer, hidden)):
            name = LORA_TARGETS[min(index, 3)]
            yield ("" if matrix.full_precision else name), matrix.num_outputs, matrix.num_inputs, matrix.count
    if isinstance(layer.mlp, DenseMlpSpec):
        if layer.mlp.gated:
            yield "gate", layer.mlp.intermediate_size, hidden, 1
        yield "up", layer.mlp.intermediate_size, hidden, 1
        yield "down", hidden, layer.mlp.intermediate_size, 1
    else:
        for matrix in mlp_matrices(layer.mlp, hidden):
            yield "", matrix.num_outputs, matrix.num_inputs, matrix.count


def _layer_bytes(layer: LayerSpec, hidden: int, shape: ActivationShape) -> int:
    norms = NUM_NORMS[layer.placement] * _norm_bytes(hidden, shape)
    return norms + _mixer_bytes(layer, hidden, shape) + _mlp_bytes(layer, hidden, shape)


def _norm_bytes(width: int, shape: ActivationShape, *, num_rows: int = 1) -> int:
    """Return what a norm over `width` features, in `num_rows` groups per token, keeps of its own."""
    kept = width * num_rows * _FLOAT + num_rows * _FLOAT
    return shape.num_tokens * (kept + (width * num_rows * shape.item_bytes if shape.trains_weights else 0))


def _mixer_bytes(layer: LayerSpec, hidden: int, shape: ActivationShape) -> int:
    mixer, item = layer.mixer, shape.item_bytes
    heads = mixer.num_heads
    match mixer:
        case AttentionSpec():
            query, key = heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
            elements = 2 * query + 2 * (query if shape.masked else key)
            result = query
        case LatentAttentionSpec():
            width = mixer.nope_head_dim + mixer.rope_head_dim
            result = heads * mixer.value_head_dim
            elements = 2 * heads * width + 2 * result + (mixer.query_rank or 0) + mixer.kv_rank + mixer.rope_head_dim
        case RecurrentSpec():
            result = heads * mixer.value_dim
            elements = 4 * heads * mixer.key_dim + 3 * result
    kept = shape.num_tokens * (elements * item + heads * _FLOAT)
    if isinstance(mixer, AttentionSpec) and mixer.qk_norm is not None:
        kept += _norm_bytes(mixer.head_dim, shape, num_rows=heads)
        kept += _norm_bytes(mixer.head_dim, shape, num_rows=mixer.num_kv_heads)
    if isinstance(mixer, AttentionSpec) and shape.masked:
        kept += shape.seq_tokens**2 * item
    if shape.trains_weights:
        kept += shape.num_tokens * hidden * item
    # Attention itself keeps its results, so that what reads them shares them, unless they are copied.
    copied = isinstance(mixer, AttentionSpec) and _is_partly_rotated(mixer)
    if copied and shape.trains_weights:
        kept += shape.num_tokens * result * item
    shared = 0 if copied else result
    return kept + _adapter_bytes(shape, ("q", "k", "v"), hidden, 0) + _adapter_bytes(shape, ("o",), result, shared)


def _is_partly_rotated(mixer: AttentionSpec) -> bool:
    """Return whether rotated and other dimensions are joined, which leaves queries head by head, not token by token."""
    return mixer.rotary is not None and mixer.rotary.dimensions < mixer.head_dim


def _mlp_bytes(layer: LayerSpec, hidden: int, shape: ActivationShape) -> int:
    width = _mlp_width(layer)
    gated = not isinstance(layer.mlp, DenseMlpSpec) or layer.mlp.gated
    elements = (3 if gated else 1) * width
    if shape.trains_weights:
        elements += hidden + width
    kept = shape.num_tokens * elements * shape.item_bytes
    return kept + _adapter_bytes(shape, ("gate", "up"), hidden, 0) + _adapter_bytes(shape, ("down",), width, 0)


def _adapter_bytes(shape: ActivationShape, targets: tuple[str, ...], inputs: int, shared: int) -> int:
    """Return what adapters on `targets`, which read one input of `inputs`, keep; `shared` of it is kept anyway."""
    count = sum(target in shape.lora_targets for target in targets)
    if count == 0:
        return 0
    # A bf16 input is widened by each adapter for itself.
    widened = count * inputs if shape.item_bytes != _FLOAT else inputs - shared
    return shape.num_tokens * _FLOAT * (widened + count * shape.lora_rank)


def _mlp_width(layer: LayerSpec) -> int:
    if isinstance(layer.mlp, DenseMlpSpec):
        return layer.mlp.intermediate_size
    return layer.mlp.experts_per_token * layer.mlp.expert_intermediate_size + layer.mlp.shared_intermediate_size


def _mixer_width(layer: LayerSpec) -> int:
    return sum(matrix.num_outputs for matrix in mixer_matrices(layer.mixer, 1)) * 2


def _rotary_bytes(spec: ArchSpec, shape: ActivationShape) -> int:
    """Return the tables of cosines and sines: one for all layers, but each layer's own where pairs are interleaved."""
    mixers = [layer.mixer for layer in spec.layers if not isinstance(layer.mixer, RecurrentSpec)]
    tables = [mixer.rotary for mixer in mixers if mixer.rotary is not None]
    own = [table for table in tables if table.interleaved and not shape.checkpointing]
    shared = {table for table in tables if table not in own}
    return sum(2 * table.dimensions * shape.seq_tokens * shape.item_bytes for table in (*own, *shared))
