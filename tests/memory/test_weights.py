"""Weight bytes: against sums over the matrices written out by hand, and the stated limits of the packed formats."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe
from openautoglm.memory.weights import num_active_parameters, num_parameters, weight_bytes
from openautoglm.spec.arch import TowerSpec
from openautoglm.spec.formats import WEIGHT_NUMBERS, ModelFormats, NumberFormat, WeightFormat

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())
FORMATS = {number: ModelFormats.for_quantisation(number) for number in WEIGHT_NUMBERS}


def by_hand(spec, formats):
    """Layers of a plain decoder, matrix by matrix as the loader packs them: qkv and gate_up fused."""
    total = 0
    for layer in spec.layers:
        mixer, hidden = layer.mixer, spec.hidden_size
        rows = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
        total += formats.layers.packed_bytes(rows, hidden)
        total += formats.layers.packed_bytes(hidden, mixer.num_heads * mixer.head_dim)
        total += formats.layers.packed_bytes(2 * layer.mlp.intermediate_size, hidden)
        total += formats.layers.packed_bytes(hidden, layer.mlp.intermediate_size)
    return total


@pytest.mark.parametrize("number", WEIGHT_NUMBERS)
@pytest.mark.parametrize("model_type", ["glm", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_plain_decoders(model_type, number):
    spec, formats = describe(debug_config(model_type)), FORMATS[number]
    found = weight_bytes(spec, formats)
    assert found.layers == by_hand(spec, formats)
    assert found.head == formats.head.packed_bytes(spec.vocab_size, spec.hidden_size)
    assert found.embedding == formats.embedding.packed_bytes(spec.vocab_size, spec.hidden_size)
    assert found.total == found.layers + found.head + found.embedding + found.norms


def test_vectors_are_fp32():
    spec = describe(debug_config("glm4"))
    per_layer = 4 * 96 + (4 + 2 * 2) * 32  # four norms; biases of query, key and value
    assert weight_bytes(spec, FORMATS[NumberFormat.INT4]).norms == 4 * (3 * per_layer + 96)
    qwen = describe(debug_config("qwen3"))
    per_layer = 2 * 96 + 2 * 32 + (4 + 2 * 2) * 32 + 96  # qk-norms, and a bias of the output too
    assert weight_bytes(qwen, FORMATS[NumberFormat.BF16]).norms == 4 * (3 * per_layer + 96)


def test_tied_embeddings_are_one_matrix():
    config = debug_config("llama")
    free = weight_bytes(describe(config), FORMATS[NumberFormat.INT4])
    tied = weight_bytes(describe(config | {"tie_word_embeddings": True}), FORMATS[NumberFormat.INT4])
    assert tied.embedding == 0
    assert tied.head == free.head
    assert tied.layers == free.layers


@pytest.mark.parametrize("name", FIXTURES)
def test_bf16_is_two_bytes_a_parameter(name):
    spec = describe(FIXTURES[name]["config"])
    assert weight_bytes(spec, FORMATS[NumberFormat.BF16]).total == pytest.approx(2 * num_parameters(spec), rel=0.01)


@pytest.mark.parametrize("name", FIXTURES)
def test_int4_is_between_four_and_six_bits_and_edges_are_int8(name):
    spec = describe(FIXTURES[name]["config"])
    edges = (1 if spec.tied_embeddings else 2) * spec.vocab_size * spec.hidden_size
    towers = sum(tower.num_parameters for tower in spec.towers)
    found = weight_bytes(spec, FORMATS[NumberFormat.INT4])
    inner = num_parameters(spec) - edges - towers
    assert 4 * inner < 8 * (found.layers - 2 * towers) < 6 * inner
    assert found.head + found.embedding == pytest.approx(edges, rel=0.05)


def test_routers_and_experts():
    """Each expert is packed by itself; the router and its correction stay fp32."""
    spec = describe(debug_config("glm4_moe"))
    formats = ModelFormats(
        layers=WeightFormat(number=NumberFormat.INT8),
        head=WeightFormat(number=NumberFormat.INT8),
        embedding=WeightFormat(number=NumberFormat.INT8),
        kv=NumberFormat.BF16,
    )
    packed = formats.layers.packed_bytes
    attention = packed(256, 96) + packed(96, 128)
    expert = packed(96, 96) + packed(96, 48)
    router = WeightFormat(number=NumberFormat.F32).packed_bytes(8, 96)
    dense = packed(352, 96) + packed(96, 176)
    expected = 3 * attention + dense + 2 * (9 * expert + router)  # eight routed, one shared
    assert weight_bytes(spec, formats).layers == expected
    assert num_parameters(spec) - num_active_parameters(spec) == 2 * 6 * 3 * 48 * 96


def test_towers_are_bf16():
    spec = describe(debug_config("llama"))
    towered = replace(spec, towers=(TowerSpec(kind="vision", num_parameters=1000),))
    assert num_parameters(towered) == num_parameters(spec) + 1000
    before, after = (weight_bytes(one, FORMATS[NumberFormat.INT4]).layers for one in (spec, towered))
    assert after - before == 2000
