"""Binding tensors: order of rows, permutations, ties, extra layers, and what is refused."""

import numpy as np
import pytest

from openautoglm.errors import (
    CheckpointFormatError,
    MissingTensorError,
    UnexpectedTensorError,
    UnsupportedModelError,
)
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, weight_map
from openautoglm.spec.weights import MatrixRole, RotaryPermutation, VectorRole

LAYERS, HIDDEN, WIDTH, VOCAB, QUERY, KEY = 3, 96, 176, 160, 128, 64


def glm_shapes(sandwich=False):
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", QUERY), ("k", KEY), ("v", KEY)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[prefix + "self_attn.o_proj.weight"] = (HIDDEN, QUERY)
        shapes[prefix + "mlp.gate_up_proj.weight"] = (2 * WIDTH, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, WIDTH)
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        if sandwich:
            shapes[prefix + "post_self_attn_layernorm.weight"] = (HIDDEN,)
            shapes[prefix + "post_mlp_layernorm.weight"] = (HIDDEN,)
    return shapes


def chatglm_shapes():
    """The table of a legacy checkpoint, as the original repositories name it."""
    shapes = {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": (8,),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.encoder.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "self_attention.query_key_value.weight": (QUERY + 2 * KEY, HIDDEN),
            prefix + "self_attention.query_key_value.bias": (QUERY + 2 * KEY,),
            prefix + "self_attention.dense.weight": (HIDDEN, QUERY),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "mlp.dense_h_to_4h.weight": (2 * WIDTH, HIDDEN),
            prefix + "mlp.dense_4h_to_h.weight": (HIDDEN, WIDTH),
        }
    return shapes


def bind(model_type, shapes, **changes):
    config = debug_config(model_type) | changes
    return weight_map(describe(config), config, shapes)


def matrix(bound, role, layer):
    return next(binding for binding in bound.matrices if (binding.role, binding.layer) == (role, layer))


def vector(bound, role, layer):
    return next(binding for binding in bound.vectors if (binding.role, binding.layer) == (role, layer))


def test_interleaved_heads_are_permuted_and_values_are_not():
    bound = bind("glm", glm_shapes())
    turned = RotaryPermutation(head_dim=32, rotary_dims=16)
    for binding in (matrix(bound, MatrixRole.QKV, 1), vector(bound, VectorRole.QKV_BIAS, 1)):
        assert [part.permutation for part in binding.parts] == [turned, turned, None]
        assert [part.num_rows for part in binding.parts] == [QUERY, KEY, KEY]
        assert not binding.interleaved
    assert matrix(bound, MatrixRole.QKV, 1).num_outputs == QUERY + 2 * KEY
    assert matrix(bound, MatrixRole.QKV, 1).num_inputs == HIDDEN


def test_fused_gate_up_becomes_alternating_halves():
    binding = matrix(bind("glm", glm_shapes()), MatrixRole.GATE_UP, 2)
    gate, up = binding.parts
    assert binding.interleaved
    assert gate.name == up.name == "model.layers.2.mlp.gate_up_proj.weight"
    assert (gate.row_begin, gate.row_end, up.row_begin, up.row_end) == (0, WIDTH, WIDTH, 2 * WIDTH)


def test_glm4_norms_go_where_transformers_uses_them():
    bound = bind("glm4", glm_shapes(sandwich=True))
    names = {binding.role: binding.parts[0].name for binding in bound.vectors if binding.layer == 0}
    assert names[VectorRole.INPUT_NORM].endswith(".input_layernorm.weight")
    assert names[VectorRole.POST_MIXER_NORM].endswith(".post_self_attn_layernorm.weight")
    assert names[VectorRole.PRE_MLP_NORM].endswith(".post_attention_layernorm.weight")
    assert names[VectorRole.POST_MLP_NORM].endswith(".post_mlp_layernorm.weight")


def test_legacy_chatglm_is_the_same_model_in_other_names():
    legacy, modern = bind("chatglm", chatglm_shapes()), bind("glm", glm_shapes())
    assert legacy.ignored == ("transformer.rotary_pos_emb.inv_freq",)
    for old, new in zip(legacy.matrices, modern.matrices, strict=True):
        assert (old.role, old.layer, old.interleaved) == (new.role, new.layer, new.interleaved)
        assert [part.num_rows for part in old.parts] == [part.num_rows for part in new.parts]
        assert [part.permutation for part in old.parts] == [part.permutation for part in new.parts]
    parts = matrix(legacy, MatrixRole.QKV, 1).parts
    assert {part.name for part in parts} == {"transformer.encoder.layers.1.self_attention.query_key_value.weight"}
    assert [part.row_begin for part in parts] == [0, QUERY, QUERY + KEY]


def test_legacy_chatglm_describes_the_glm_that_it_is():
    legacy = describe(debug_config("chatglm"))
    modern = describe(debug_config("glm") | {"rope_parameters": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5}})
    assert legacy.layers == modern.layers
    assert (legacy.hidden_size, legacy.vocab_size, legacy.max_positions) == (96, 160, 256)
    assert not describe(debug_config("chatglm") | {"tie_word_embeddings": True}).tied_embeddings


def test_real_legacy_config():
    config = {
        "_name_or_path": "THUDM/glm-4-9b-chat", "model_type": "chatglm", "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}, "add_bias_linear": False,
        "add_qkv_bias": True, "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True, "attn_implementation": "sdpa", "bias_dropout_fusion": True,
        "ffn_hidden_size": 13696, "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 4096,
        "kv_channels": 128, "layernorm_epsilon": 1.5625e-07, "multi_query_attention": True,
        "multi_query_group_num": 2, "num_attention_heads": 32, "num_hidden_layers": 40, "num_layers": 40,
        "original_rope": True, "padded_vocab_size": 151552, "post_layer_norm": True, "rmsnorm": True,
        "rope_ratio": 500, "seq_length": 131072, "use_cache": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0", "tie_word_embeddings": False,
        "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329, "classifier_dropout": None,
    }  # fmt: skip
    modern = {
        "model_type": "glm", "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07, "attention_bias": True,
        "rope_theta": 5000000.0,
    }  # fmt: skip
    assert describe(config).layers == describe(modern).layers


def test_permutation_turns_pairs_into_halves():
    """The rule that the loader follows: rotating pairs before equals rotating halves after."""
    head_dim, rotary = 12, 8
    order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, head_dim)]
    generator = np.random.default_rng(1)
    head, angles = generator.normal(size=head_dim), generator.normal(size=rotary // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    paired = head.copy()
    paired[0:rotary:2] = head[0:rotary:2] * cos - head[1:rotary:2] * sin
    paired[1:rotary:2] = head[1:rotary:2] * cos + head[0:rotary:2] * sin
    permuted = head[order]
    half = rotary // 2
    halves = permuted.copy()
    halves[:half] = permuted[:half] * cos - permuted[half:rotary] * sin
    halves[half:rotary] = permuted[half:rotary] * cos + permuted[:half] * sin
    np.testing.assert_array_equal(halves, paired[order])


@pytest.mark.parametrize("name", sorted(glm_shapes(sandwich=True)))
def test_every_missing_tensor_is_named(name):
    shapes = glm_shapes(sandwich=True)
    del shapes[name]
    with pytest.raises(MissingTensorError, match=name.replace(".", r"\.")):
        bind("glm4", shapes)


@pytest.mark.parametrize("name", sorted(glm_shapes(sandwich=True)))
def test_every_wrong_shape_is_named(name):
    shapes = glm_shapes(sandwich=True)
    for shape in ((), tuple(size + 1 for size in shapes[name]), (*shapes[name], 1), (*shapes[name][::-1], 2)):
        with pytest.raises(CheckpointFormatError, match=name.replace(".", r"\.")):
            bind("glm4", shapes | {name: shape})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.post_mlp_layernorm.weight",
        "model.embed_positions.weight",
        "lm_head.bias",
        "model.layers.00.input_layernorm.weight",
        "model.layers.x.input_layernorm.weight",
    ],
)
def test_every_unexplained_tensor_is_named(name):
    with pytest.raises(UnexpectedTensorError, match=name.replace(".", r"\.")):
        bind("glm", glm_shapes() | {name: (HIDDEN,)})


def test_idle_tensors_are_listed():
    idle = {
        "model.rotary_emb.inv_freq": (8,),
        "model.layers.1.self_attn.rotary_emb.inv_freq": (8,),
    }
    assert bind("glm", glm_shapes() | idle).ignored == tuple(sorted(idle))


def test_prediction_layers_are_ignored_only_where_declared():
    extra = {"model.layers.3.eh_proj.weight": (HIDDEN, 2 * HIDDEN), "model.layers.3.shared_head.norm.weight": (HIDDEN,)}
    assert bind("glm", glm_shapes() | extra, num_nextn_predict_layers=1).ignored == tuple(sorted(extra))
    with pytest.raises(UnexpectedTensorError, match="eh_proj"):
        bind("glm", glm_shapes() | extra)
    with pytest.raises(UnexpectedTensorError, match=r"layers\.4"):
        bind("glm", glm_shapes() | {"model.layers.4.eh_proj.weight": (1,)}, num_nextn_predict_layers=1)


def test_tied_embeddings_have_no_head():
    shapes = glm_shapes()
    bound = bind("glm", shapes, tie_word_embeddings=True)
    assert bound.ignored == ("lm_head.weight",)
    del shapes["lm_head.weight"]
    bound = bind("glm", shapes, tie_word_embeddings=True)
    assert bound.ignored == ()
    assert {binding.role for binding in bound.matrices if binding.layer is None} == {MatrixRole.EMBEDDING}


def test_described_families_are_not_mapped():
    config = debug_config("glm4_moe")
    with pytest.raises(UnsupportedModelError, match="mixture of experts") as caught:
        weight_map(describe(config), config, {})
    assert caught.value.features == ("mixture of experts",)
