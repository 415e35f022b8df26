"""Every field of a description that a loadable model uses matters: change it, and the logits move or loading refuses.

Each change is made to the description alone; the checkpoint stays. A field whose change goes unnoticed would be a
field that the executor does not read, or a model too tame to show it.
"""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from openautoglm.errors import OpenAutoGLMError
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe
from openautoglm.spec.arch import (
    Activation,
    ArchSpec,
    AttentionSpec,
    DenseMlpSpec,
    LayerSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    RotarySpec,
    TowerSpec,
)
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.weights import TensorPart, VectorRole, WeightMap
from tests.parity.models import load, make_tiny, relative_error
from tests.parity.test_float import FP32_ERROR, YARN

TOKENS = 60  # beyond the window of 24
MOVED = 20 * FP32_ERROR


def in_layers(change):
    return lambda spec: replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def in_mixer(change):
    return in_layers(lambda layer: replace(layer, mixer=change(layer.mixer)))


def in_rotary(change):
    return in_mixer(lambda mixer: replace(mixer, rotary=change(mixer.rotary)))


def doubled(values):
    return tuple(2 * value for value in values)


def cut(values):
    return values[: len(values) // 2]


MODELS = {
    "glm4": ("glm4", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "yarn": ("llama", {"rope_parameters": YARN}),
}

LOGITS_MOVE = {
    "scale": ("glm4", in_mixer(lambda mixer: replace(mixer, scale=mixer.scale * 1.1))),
    "layer epsilon": ("glm4", in_layers(lambda layer: replace(layer, norm=replace(layer.norm, epsilon=0.05)))),
    "layer weight_offset": (
        "glm4",
        in_layers(lambda layer: replace(layer, norm=replace(layer.norm, weight_offset=0.5))),
    ),
    "final epsilon": ("glm4", lambda spec: replace(spec, final_norm=replace(spec.final_norm, epsilon=0.05))),
    "final weight_offset": ("glm4", lambda spec: replace(spec, final_norm=replace(spec.final_norm, weight_offset=1.0))),
    "qk-norm weight_offset": (
        "qwen3",
        in_mixer(lambda mixer: replace(mixer, qk_norm=replace(mixer.qk_norm, weight_offset=0.5))),
    ),
    "qk-norm epsilon": (
        "qwen3",
        in_mixer(lambda mixer: replace(mixer, qk_norm=replace(mixer.qk_norm, epsilon=0.05))),
    ),
    "rotary interleaved": ("glm4", in_rotary(lambda rotary: replace(rotary, interleaved=False))),
    "rotary half-split": ("qwen3", in_rotary(lambda rotary: replace(rotary, interleaved=True))),
    "rotary frequencies": (
        "glm4",
        in_rotary(lambda rotary: replace(rotary, inverse_frequencies=doubled(rotary.inverse_frequencies))),
    ),
    "rotary dimensions": (
        "glm4",
        in_rotary(
            lambda rotary: replace(
                rotary, dimensions=rotary.dimensions // 2, inverse_frequencies=cut(rotary.inverse_frequencies)
            )
        ),
    ),
    "rotary none": ("glm4", in_mixer(lambda mixer: replace(mixer, rotary=None))),
    "attention factor": ("yarn", in_rotary(lambda rotary: replace(rotary, attention_factor=1.0))),
    "window": ("mistral", in_mixer(lambda mixer: replace(mixer, window=23))),
    "window none": ("mistral", in_mixer(lambda mixer: replace(mixer, window=None))),
    "window of some layers": ("qwen2", lambda spec: replace(spec, layers=(spec.layers[1], *spec.layers[1:]))),
    "order of layers": ("qwen2", lambda spec: replace(spec, layers=spec.layers[::-1])),
    "embedding scale": ("glm4", lambda spec: replace(spec, embedding_scale=1.1)),
    "tied embeddings": ("glm4", lambda spec: replace(spec, tied_embeddings=True)),
    "heads": (
        "glm4",
        in_mixer(lambda mixer: replace(mixer, num_heads=8, num_kv_heads=4, head_dim=16)),
    ),
}

REFUSED = {
    "number of layers": ("glm4", lambda spec: replace(spec, layers=spec.layers[:-1])),
    "hidden size": ("glm4", lambda spec: replace(spec, hidden_size=spec.hidden_size + 32)),
    "vocabulary": ("glm4", lambda spec: replace(spec, vocab_size=spec.vocab_size + 32)),
    "kv heads": ("glm4", in_mixer(lambda mixer: replace(mixer, num_kv_heads=4))),
    "qkv bias": ("glm4", in_mixer(lambda mixer: replace(mixer, qkv_bias=False))),
    "output bias": ("glm4", in_mixer(lambda mixer: replace(mixer, output_bias=True))),
    "output bias gone": ("qwen3", in_mixer(lambda mixer: replace(mixer, output_bias=False))),
    "qk-norm gone": ("qwen3", in_mixer(lambda mixer: replace(mixer, qk_norm=None))),
    "intermediate size": (
        "glm4",
        in_layers(lambda layer: replace(layer, mlp=replace(layer.mlp, intermediate_size=160))),
    ),
    "norms before blocks only": ("glm4", in_layers(lambda layer: replace(layer, placement=NormPlacement.PRE))),
    "norms after blocks": ("mistral", in_layers(lambda layer: replace(layer, placement=NormPlacement.SANDWICH))),
    "qkv bias added": ("mistral", in_mixer(lambda mixer: replace(mixer, qkv_bias=True))),
    "qk-norm added": ("mistral", in_mixer(lambda mixer: replace(mixer, qk_norm=NormSpec(epsilon=1e-6)))),
    "gated": ("glm4", in_layers(lambda layer: replace(layer, mlp=replace(layer.mlp, gated=False)))),
    "activation": (
        "glm4",
        in_layers(lambda layer: replace(layer, mlp=replace(layer.mlp, activation=Activation.GELU))),
    ),
    "limit": ("glm4", in_layers(lambda layer: replace(layer, mlp=replace(layer.mlp, limit=1.0)))),
    "kind of norm": (
        "glm4",
        in_layers(lambda layer: replace(layer, norm=replace(layer.norm, kind=NormKind.LAYER))),
    ),
    "kind of final norm": ("glm4", lambda spec: replace(spec, final_norm=NormSpec(epsilon=1e-5, kind=NormKind.LAYER))),
    "kind of rotary scaling": ("glm4", in_rotary(lambda rotary: replace(rotary, kind="dynamic"))),
    "rotary sections": ("glm4", in_rotary(lambda rotary: replace(rotary, mrope_sections=(2, 3, 3)))),
    "residual streams": ("glm4", lambda spec: replace(spec, residual_streams=2)),
    "towers": ("glm4", lambda spec: replace(spec, towers=(TowerSpec(kind="vision", num_parameters=1),))),
    "extra parameters": ("glm4", lambda spec: replace(spec, extra_parameters=2)),
    "extra parameters of layers": ("glm4", in_layers(lambda layer: replace(layer, extra_parameters=3))),
    "max positions": ("glm4", lambda spec: replace(spec, max_positions=TOKENS - 1)),
    "mlp bias": ("glm4", in_layers(lambda layer: replace(layer, mlp=replace(layer.mlp, bias=True)))),
    "head bias": ("glm4", lambda spec: replace(spec, head_bias=True)),
    "parallel": ("glm4", in_layers(lambda layer: replace(layer, placement=NormPlacement.PARALLEL))),
}


@pytest.fixture(scope="module")
def tinies(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutations")
    return {name: make_tiny(kind, root / name, **changes) for name, (kind, changes) in MODELS.items()}


def error_of(tiny, runner):
    tokens = tiny.tokens(TOKENS)
    error = relative_error(runner.feed(tokens), tiny.logits(tokens))
    runner.executor.close()
    return error


@pytest.mark.parametrize("model", MODELS)
def test_unchanged_is_equal(model, tinies):
    tiny = tinies[model]
    assert error_of(tiny, load(tiny.directory, NumberFormat.F32)) < FP32_ERROR


@pytest.mark.parametrize("field", LOGITS_MOVE)
def test_logits_move(field, tinies):
    model, change = LOGITS_MOVE[field]
    tiny = tinies[model]
    assert error_of(tiny, load(tiny.directory, NumberFormat.F32, change_spec=change)) > MOVED


@pytest.mark.parametrize("field", REFUSED)
def test_it_is_refused(field, tinies):
    model, change = REFUSED[field]
    tiny = tinies[model]
    with pytest.raises(OpenAutoGLMError):
        error_of(tiny, load(tiny.directory, NumberFormat.F32, change_spec=change))


# names that change nothing that is computed, and what an executor may keep as it likes
NOT_NUMERIC = {"family", "model_type", "features", "cache"}


def test_every_field_is_in_a_table():
    """A field that is added to the description must be added to a table here."""
    described = set()
    for part in (ArchSpec, LayerSpec, AttentionSpec, RotarySpec, NormSpec, DenseMlpSpec):
        described |= {field.name for field in fields(part)}
    changed = set()
    for model, change in (*LOGITS_MOVE.values(), *REFUSED.values()):
        kind, changes = MODELS[model]
        spec = describe(debug_config(kind) | changes)
        changed |= differing_fields(spec, change(spec))
    assert described - NOT_NUMERIC == changed - NOT_NUMERIC


def differing_fields(one, other):
    """Return the names of all fields, nested ones too, in which two descriptions differ."""
    names = set()
    for field in fields(one):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if before == after:
            continue
        names.add(field.name)
        pairs = zip(before, after, strict=False) if isinstance(before, tuple) else [(before, after)]
        for first, second in pairs:
            if is_dataclass(first) and is_dataclass(second):
                names |= differing_fields(first, second)
    return names


def without_permutation(bound: WeightMap) -> WeightMap:
    def plain(part: TensorPart) -> TensorPart:
        return replace(part, permutation=None)

    return replace(
        bound, matrices=tuple(replace(one, parts=tuple(plain(part) for part in one.parts)) for one in bound.matrices)
    )


def swapped(first: VectorRole, second: VectorRole):
    """Exchange two norms: the trap of glm4's post_attention_layernorm, which is the norm before the MLP."""
    other = {first: second, second: first}
    return lambda bound: replace(
        bound, vectors=tuple(replace(one, role=other.get(one.role, one.role)) for one in bound.vectors)
    )


def swapped_halves(bound: WeightMap) -> WeightMap:
    return replace(
        bound,
        matrices=tuple(replace(one, parts=one.parts[::-1]) if one.interleaved else one for one in bound.matrices),
    )


MAP_CHANGES = {
    "permutation of rows": without_permutation,
    "norm before and after the MLP": swapped(VectorRole.PRE_MLP_NORM, VectorRole.POST_MLP_NORM),
    "norm after attention and before the MLP": swapped(VectorRole.POST_MIXER_NORM, VectorRole.PRE_MLP_NORM),
    "norm before and after attention": swapped(VectorRole.INPUT_NORM, VectorRole.POST_MIXER_NORM),
    "gate and up": swapped_halves,
}


@pytest.mark.parametrize("change", MAP_CHANGES)
def test_places_of_tensors_matter(change, tinies):
    tiny = tinies["glm4"]
    assert error_of(tiny, load(tiny.directory, NumberFormat.F32, change_map=MAP_CHANGES[change])) > MOVED


def test_every_family_of_norms_is_told_apart(tinies):
    """The four norms of a sandwich layer are all different tensors, so that an exchange can show."""
    layer = tinies["glm4"].model.model.layers[0]
    norms = [
        layer.input_layernorm,
        layer.post_attention_layernorm,
        layer.post_self_attn_layernorm,
        layer.post_mlp_layernorm,
    ]
    weights = [norm.weight.detach().numpy() for norm in norms]
    for index, weight in enumerate(weights):
        assert all(np.abs(weight - other).max() > 0.1 for other in weights[index + 1 :])
