"""Names of what goes beyond a plain decoder, derived from the description itself so that none can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openautoglm.spec.arch import (
    Activation,
    ArchSpec,
    AttentionSpec,
    DenseMlpSpec,
    LatentAttentionSpec,
    LayerSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    RecurrentSpec,
    RotarySpec,
)

_LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")


def with_features(spec: ArchSpec) -> ArchSpec:
    """Return `spec` with `features` filled in, in order of first appearance."""
    names = [*_model_features(spec)]
    for layer in dict.fromkeys(spec.layers):
        names.extend(_layer_features(layer))
    return replace(spec, features=tuple(dict.fromkeys(names)))


def _model_features(spec: ArchSpec) -> Iterator[str]:
    for tower in spec.towers:
        yield f"{tower.kind} tower"
    if spec.residual_streams > 1:
        yield "hyper-connections"
    if spec.embedding_scale != 1.0:
        yield "scaled embeddings"
    if spec.head_bias:
        yield "output head bias"
    yield from _norm_features(spec.final_norm)


def _layer_features(layer: LayerSpec) -> Iterator[str]:
    match layer.mixer:
        case AttentionSpec() as attention:
            yield from _rotary_features(attention.rotary)
            if attention.qk_norm is not None:
                yield from _norm_features(attention.qk_norm)
        case LatentAttentionSpec() as latent:
            yield "multi-head latent attention"
            if latent.indexer is not None:
                yield "sparse attention indexer"
            yield from _rotary_features(latent.rotary)
        case RecurrentSpec():
            yield "linear attention"
    yield from _mlp_features(layer.mlp)
    if layer.placement is NormPlacement.PARALLEL:
        yield "parallel attention and MLP"
    yield from _norm_features(layer.norm)


def _mlp_features(mlp: DenseMlpSpec | MoeSpec) -> Iterator[str]:
    if isinstance(mlp, MoeSpec):
        yield "mixture of experts"
    else:
        if not mlp.gated:
            yield "ungated MLP"
        if mlp.bias:
            yield "MLP bias"
    if mlp.activation is not Activation.SILU:
        yield f"{mlp.activation} activation"
    if mlp.limit is not None:
        yield "clamped MLP"


def _norm_features(norm: NormSpec) -> Iterator[str]:
    if norm.kind is NormKind.LAYER:
        yield "layer norm"
    if norm.weight_offset:
        yield "offset norm weights"


def _rotary_features(rotary: RotarySpec | None) -> Iterator[str]:
    if rotary is None:
        return
    if rotary.kind in _LENGTH_DEPENDENT_ROTARY:
        yield f"{rotary.kind} rotary scaling"
    if rotary.mrope_sections is not None:
        yield "multi-axis rotary positions"
