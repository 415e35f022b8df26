"""Bad configs: each is refused with the name of the key, none is guessed at."""

import pytest

from openautoglm.errors import (
    CheckpointFormatError,
    ModelError,
    UnknownConfigKeyError,
    UnknownModelTypeError,
    UnsupportedModelError,
)
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, known_model_types, read_config

BAD_VALUES = [
    ("llama", "hidden_size", 0),
    ("llama", "hidden_size", -96),
    ("llama", "hidden_size", True),
    ("llama", "hidden_size", "96"),
    ("llama", "hidden_size", 96.0),
    ("llama", "hidden_size", None),
    ("llama", "hidden_size", 10**8),
    ("llama", "hidden_size", 10**400),
    ("llama", "num_hidden_layers", 10**7),
    ("llama", "num_attention_heads", 3),
    ("llama", "num_key_value_heads", 3),
    ("llama", "num_key_value_heads", 0),
    ("llama", "head_dim", 10**6),
    ("llama", "head_dim", 31),
    ("llama", "vocab_size", []),
    ("llama", "max_position_embeddings", float("nan")),
    ("llama", "rms_norm_eps", 0),
    ("llama", "rms_norm_eps", float("nan")),
    ("llama", "rms_norm_eps", float("inf")),
    ("llama", "hidden_act", "swoosh"),
    ("llama", "hidden_act", 7),
    ("llama", "tie_word_embeddings", 1),
    ("llama", "attention_bias", "true"),
    ("llama", "is_encoder_decoder", True),
    ("llama", "pruned_heads", {"0": [1]}),
    ("llama", "attn_logit_softcapping", 50.0),
    ("qwen2", "layer_types", ["full_attention"]),
    ("qwen2", "layer_types", ["full_attention", "chunked_attention", "full_attention"]),
    ("qwen2", "layer_types", [["full_attention"]] * 3),
    ("qwen2", "use_mrope", True),
    ("qwen2", "sliding_window", -1),
    ("qwen3", "layer_types", ["sliding_attention"] * 3),
    ("qwen3", "head_dim", None),
    ("mistral", "sliding_window", 0),
    ("qwen3_moe", "num_experts_per_tok", 9),
    ("qwen3_moe", "num_local_experts", 16),
    ("qwen3_moe", "mlp_only_layers", [3]),
    ("glm4_moe", "n_group", 3),
    ("glm4_moe", "topk_group", 3),
    ("glm4_moe", "scoring_func", "softmax"),
    ("glm4_moe_lite", "num_key_value_heads", 2),
    ("glm4_moe_lite", "qk_head_dim", 31),
    ("glm4_moe_lite", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("glm_moe_dsa", "indexer_types", ["shared", "full", "full"]),
    ("glm_moe_dsa", "q_lora_rank", None),
    ("glm4v", "text_config", None),
    ("glm4v", "vision_config", [1]),
    ("phi3", "attention_bias", True),
    ("gemma3_text", "use_bidirectional_attention", True),
    ("gemma3_text", "final_logit_softcapping", 30.0),
    ("chatglm", "add_bias_linear", True),
    ("chatglm", "num_hidden_layers", 4),
    ("chatglm", "multi_query_group_num", 3),
    ("chatglm", "rope_ratio", 0),
    ("chatglm", "quantization_bit", 4),
]


@pytest.mark.parametrize(("model_type", "key", "value"), BAD_VALUES)
def test_bad_value_names_the_key(model_type, key, value):
    named = "num_attention_heads" if (key, value) == ("num_attention_heads", 3) else key
    named = "partial_rotary_factor" if (key, value) == ("head_dim", 31) else named
    named = "num_experts" if (key, value) == ("num_local_experts", 16) else named
    named = "rope_type" if model_type == "glm4_moe_lite" and key == "rope_scaling" else named
    named = "type" if named == "rope_type" else named
    config = debug_config(model_type) | {key: value}
    if key == "num_attention_heads":
        config |= {"num_key_value_heads": 1, "head_dim": None, "hidden_size": 100}
    with pytest.raises(ModelError, match=named) as caught:
        describe(config)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("model_type", known_model_types())
def test_unknown_key_is_refused_by_name(model_type):
    with pytest.raises(UnknownConfigKeyError, match="attention_temperature_scale"):
        describe({**debug_config(model_type), "attention_temperature_scale": 0.5})


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("model_type", ["glm4v", "glm4v_moe", "glm5_next"])
def test_unknown_nested_key_is_refused_by_its_full_name(model_type, part):
    config = debug_config(model_type)
    config[part] |= {"windowed": True}
    with pytest.raises(UnknownConfigKeyError, match=rf"{part}\.windowed"):
        describe(config)


@pytest.mark.parametrize("model_type", known_model_types())
def test_harmless_keys_are_tolerated(model_type):
    config = debug_config(model_type)
    harmless = {
        "_name_or_path": "somewhere/else",
        "architectures": ["Whatever"],
        "auto_map": {"AutoConfig": "evil.Config"},
        "attention_dropout": 0.1,
        "dtype": "bfloat16",
        "initializer_range": 0.02,
        "torch_dtype": "float16",
        "transformers_version": "9.9.9",
        "use_cache": False,
        "temperature": 0.1,
    }
    assert describe({**config, **harmless}) == describe(config)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
)
def test_missing_key_is_named(key):
    config = debug_config("llama")
    del config[key]
    with pytest.raises(ModelError, match=f"'{key}' is missing"):
        describe(config)


def test_unknown_model_type_lists_the_known_ones():
    with pytest.raises(UnknownModelTypeError, match=r"'bert'.*chatglm.*glm4.*llama.*qwen3"):
        describe({"model_type": "bert"})
    with pytest.raises(ModelError, match="model_type"):
        describe({})
    with pytest.raises(ModelError, match="model_type"):
        describe({"model_type": ["llama"]})


def test_quantised_checkpoints_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"quantization_config.*fp8") as caught:
        describe({**debug_config("glm4_moe"), "quantization_config": {"quant_method": "fp8"}})
    assert caught.value.features == ("quantised checkpoint (fp8)",)
    with pytest.raises(UnsupportedModelError, match="quantised"):
        describe({**debug_config("llama"), "quantization_config": "what"})


def test_legacy_vision_is_refused():
    with pytest.raises(UnsupportedModelError, match="vision"):
        describe({**debug_config("chatglm"), "vision_config": {"hidden_size": 1}})


def test_unusual_but_describable_parts_are_flagged():
    assert describe({**debug_config("llama"), "mlp_bias": True}).features == ("MLP bias",)
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    assert describe({**debug_config("llama"), **dynamic}).features == ("dynamic rotary scaling",)
    assert describe({**debug_config("qwen2"), "hidden_act": "gelu"}).features == ("gelu activation",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "object"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"model_type": "llama", "model_type": "glm"}', "twice"),
        (b'{"hidden_size": NaN}', "NaN"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "deep"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "4.00 MiB"),
        (b'{"a": ' + b"9" * 100 + b"}", "digits"),
    ],
)
def test_hostile_config_files(tmp_path, text, reason):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointFormatError, match=reason):
        read_config(tmp_path)


def test_config_is_read_from_a_directory_or_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}')
    assert read_config(tmp_path) == read_config(path) == {"model_type": "llama"}
