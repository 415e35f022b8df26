"""What the native executor cannot run, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator

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

MAX_HEAD_DIM = 256
MAX_INPUTS = 131072  # inputs of a matrix product: bounds the kernels' scratch

_LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")


def unsupported_features(spec: ArchSpec) -> tuple[str, ...]:
    """Return why `spec` cannot run natively, one feature each, in order of first appearance; empty when it can."""
    names = [*_model(spec)]
    for layer in dict.fromkeys(spec.layers):
        names.extend(_layer(layer))
    return tuple(dict.fromkeys(names))


def _model(spec: ArchSpec) -> Iterator[str]:
    for tower in spec.towers:
        yield f"{tower.kind} tower"
    if spec.residual_streams > 1:
        yield "hyper-connections"
    if spec.extra_parameters:
        yield f"{spec.extra_parameters} parameters outside the layers"
    if spec.head_bias:
        yield "output head bias"
    if not spec.layers:
        yield "a decoder without layers"
    if spec.hidden_size > MAX_INPUTS:
        yield f"hidden size {spec.hidden_size} (at most {MAX_INPUTS})"
    yield from _norm(spec.final_norm)


def _layer(layer: LayerSpec) -> Iterator[str]:
    match layer.mixer:
        case AttentionSpec() as attention:
            yield from _attention(attention)
        case LatentAttentionSpec():
            yield "multi-head latent attention"
        case RecurrentSpec():
            yield "linear attention"
    yield from _mlp(layer.mlp)
    if layer.placement is NormPlacement.PARALLEL:
        yield "parallel attention and MLP"
    yield from _norm(layer.norm)
    if layer.extra_parameters:
        yield f"{layer.extra_parameters} parameters per layer that no field explains"


def _attention(attention: AttentionSpec) -> Iterator[str]:
    if attention.head_dim % 2:
        yield f"odd head size {attention.head_dim}"
    if attention.head_dim > MAX_HEAD_DIM:
        yield f"head size {attention.head_dim} (at most {MAX_HEAD_DIM})"
    if attention.num_heads * attention.head_dim > MAX_INPUTS:
        yield f"attention of {attention.num_heads * attention.head_dim} features (at most {MAX_INPUTS})"
    if attention.num_heads % attention.num_kv_heads:
        yield f"{attention.num_heads} query heads that do not share {attention.num_kv_heads} key-value heads evenly"
    if attention.rotary is not None:
        yield from _rotary(attention.rotary)
    if attention.qk_norm is not None:
        yield from _norm(attention.qk_norm)


def _rotary(rotary: RotarySpec) -> Iterator[str]:
    if rotary.kind in _LENGTH_DEPENDENT_ROTARY:
        yield f"{rotary.kind} rotary scaling"
    if rotary.mrope_sections is not None:
        yield "multi-axis rotary positions"


def _mlp(mlp: DenseMlpSpec | MoeSpec) -> Iterator[str]:
    if isinstance(mlp, MoeSpec):
        yield "mixture of experts"
        return
    if not mlp.gated:
        yield "ungated MLP"
    if mlp.bias:
        yield "MLP bias"
    if mlp.activation is not Activation.SILU:
        yield f"{mlp.activation} activation"
    if mlp.limit is not None:
        yield "clamped MLP"
    if mlp.intermediate_size > MAX_INPUTS:
        yield f"intermediate size {mlp.intermediate_size} (at most {MAX_INPUTS})"


def _norm(norm: NormSpec) -> Iterator[str]:
    if norm.kind is not NormKind.RMS:
        yield "layer norm"
