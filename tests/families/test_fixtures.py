"""Every published shape is described with exactly its number of parameters and its KV bytes per token."""

import json
from pathlib import Path

import pytest

from openautoglm.families.registry import describe
from openautoglm.memory.kv import indexer_bytes_per_token, kv_bytes_per_token
from openautoglm.memory.weights import num_active_parameters, num_parameters
from openautoglm.spec.arch import AttentionSpec, CacheKind, LatentAttentionSpec, NormPlacement
from openautoglm.spec.formats import NumberFormat

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())

FEATURES = {
    "GLM-4.5-Air": {"mixture of experts"},
    "GLM-4.7-Flash": {"mixture of experts", "multi-head latent attention"},
    "GLM-5.2": {"mixture of experts", "multi-head latent attention", "sparse attention indexer"},
    "GLM-4.1V-9B/AutoGLM-Phone-9B": {"vision tower", "multi-axis rotary positions"},
    "GLM-4.5V": {"vision tower", "multi-axis rotary positions", "mixture of experts"},
    "GLM-5.3-Flash": {
        "vision tower",
        "hyper-connections",
        "linear attention",
        "clamped MLP",
        "multi-head latent attention",
        "sparse attention indexer",
        "mixture of experts",
    },
    "phi-2": {
        "layer norm",
        "output head bias",
        "ungated MLP",
        "MLP bias",
        "gelu_new activation",
        "parallel attention and MLP",
    },
    "gemma-3-1b": {"scaled embeddings", "offset norm weights", "gelu_tanh activation"},
    "Qwen3-30B-A3B": {"mixture of experts"},
    "Mistral-7B-v0.1": set(),
    "GLM-4-32B-0414": set(),
    "Llama-3.1-8B": set(),
}


def spec_of(name):
    return describe(FIXTURES[name]["config"])


def test_all_forty_are_here():
    assert len(FIXTURES) == 40


@pytest.mark.parametrize("name", FIXTURES)
def test_parameters(name):
    entry, spec = FIXTURES[name], spec_of(name)
    assert num_parameters(spec) == entry["total"]
    assert num_active_parameters(spec) == entry["active"]
    assert sum(tower.num_parameters for tower in spec.towers) == entry["visual"]


@pytest.mark.parametrize("name", FIXTURES)
def test_kv_bytes_per_token(name):
    expected = FIXTURES[name]["kv_bytes_per_token_bf16"]
    if expected == "KDA+MLA":
        expected = 11 * 512 * 2  # eleven latent layers of rank 512 without a rotary part
    assert kv_bytes_per_token(spec_of(name), NumberFormat.BF16) == expected


@pytest.mark.parametrize("name", FEATURES)
def test_features(name):
    assert set(spec_of(name).features) == FEATURES[name]


@pytest.mark.parametrize(("name", "num_full"), [("GLM-5/5.1", 78), ("GLM-5.2", 21)])
def test_shared_indexers_cache_nothing(name, num_full):
    assert indexer_bytes_per_token(spec_of(name), NumberFormat.BF16) == num_full * 128 * 2


def test_indexer_schedule_equals_the_list():
    config = dict(FIXTURES["GLM-5.2"]["config"])
    listed = describe(config)
    del config["indexer_types"]
    assert describe(config) == listed
    pattern = "".join("S" if layer.mixer.indexer.shared else "F" for layer in listed.layers)
    assert describe({**config, "index_topk_freq": 1, "index_topk_pattern": pattern}) == listed


def test_glm4_is_sandwiched_and_interleaved():
    spec = spec_of("GLM-4-9B-0414")
    layer = spec.layers[0]
    assert layer.placement is NormPlacement.SANDWICH
    assert isinstance(layer.mixer, AttentionSpec)
    assert layer.mixer.rotary.interleaved
    assert layer.mixer.rotary.dimensions == 64
    assert layer.mixer.qkv_bias
    assert not layer.mixer.output_bias
    assert not spec_of("GLM-4-32B-0414").layers[0].mixer.qkv_bias


def test_head_dim_is_read_not_derived():
    mixer = spec_of("GLM-4.5-Air").layers[0].mixer
    assert mixer.head_dim == 128
    assert not mixer.rotary.interleaved
    assert mixer.qk_norm is None
    assert spec_of("GLM-4.5/4.6/4.7").layers[0].mixer.qk_norm is not None


def test_latent_norms_ignore_rms_norm_eps():
    mixer = spec_of("GLM-4.7-Flash").layers[0].mixer
    assert isinstance(mixer, LatentAttentionSpec)
    assert mixer.latent_norm.epsilon == 1e-6
    assert mixer.scale == 256**-0.5


def test_hybrid_layers():
    spec = spec_of("GLM-5.3-Flash")
    kinds = [layer.cache for layer in spec.layers]
    assert kinds.count(CacheKind.RECURRENT) == 34
    assert kinds.count(CacheKind.LATENT_INDEXED) == 11
    assert spec.residual_streams == 4


def test_gemma_has_two_rotary_bases_and_six_layer_pattern():
    layers = spec_of("gemma-3-1b").layers
    assert [layer.mixer.window for layer in layers[:6]] == [512] * 5 + [None]
    sliding, full = layers[0].mixer, layers[5].mixer
    assert sliding.rotary.inverse_frequencies[1] > full.rotary.inverse_frequencies[1]
    assert full.scale == 256**-0.5


def test_mistral_window_is_on_every_layer():
    spec = spec_of("Mistral-7B-v0.1")
    assert {layer.mixer.window for layer in spec.layers} == {4096}
    assert {layer.cache for layer in spec.layers} == {CacheKind.SLIDING}
