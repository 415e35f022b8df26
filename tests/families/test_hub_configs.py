"""Released config.json files, in the spelling of their time, describe the shapes of the reference figures."""

import json
from pathlib import Path

import pytest

from openautoglm.families.registry import describe
from openautoglm.memory.kv import kv_bytes_per_token
from openautoglm.memory.weights import num_parameters
from openautoglm.spec.formats import NumberFormat

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "model_fixtures.json").read_text())

COMMON = {
    "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16",
    "transformers_version": "4.4x", "use_cache": True, "tie_word_embeddings": False,
}  # fmt: skip

FILES = {
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "vocab_size": 128256,
    },
    "Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "use_mrope": False,
        "use_sliding_window": False, "vocab_size": 152064,
    },
    "Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288,
        "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768,
    },
    "glm-edge-1.5b-chat": {
        "architectures": ["GlmForCausalLM"], "attention_bias": False, "eos_token_id": [59246, 59253, 59255],
        "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 8192,
        "model_type": "glm", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "pad_token_id": 59246, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "vocab_size": 59264, "tie_word_embeddings": True,
    },
    "GLM-4-9B-0414": {
        "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "eos_token_id": [151329, 151336, 151338],
        "head_dim": 128, "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 32768,
        "model_type": "glm4", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
        "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "vocab_size": 151552,
    },
    "GLM-4.5-Air": {
        "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_size": 4096,
        "partial_rotary_factor": 0.5, "intermediate_size": 10944, "max_position_embeddings": 131072,
        "model_type": "glm4_moe", "moe_intermediate_size": 1408, "norm_topk_prob": True,
        "num_attention_heads": 96, "n_group": 1, "topk_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
        "routed_scaling_factor": 1.0, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
        "num_hidden_layers": 46, "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 1000000, "use_qk_norm": False, "vocab_size": 151552,
    },
    "GLM-4.7-Flash": {
        "architectures": ["Glm4MoeLiteForCausalLM"], "attention_bias": False, "pad_token_id": 154820,
        "eos_token_id": [154820, 154827, 154829], "hidden_size": 2048, "intermediate_size": 10240,
        "max_position_embeddings": 202752, "model_type": "glm4_moe_lite", "moe_intermediate_size": 1536,
        "topk_method": "noaux_tc", "norm_topk_prob": True, "num_attention_heads": 20, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 64, "n_shared_experts": 1, "routed_scaling_factor": 1.8, "num_experts_per_tok": 4,
        "first_k_dense_replace": 1, "num_hidden_layers": 47, "num_key_value_heads": 20,
        "num_nextn_predict_layers": 1, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 1000000, "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "vocab_size": 154880,
    },
    "GLM-5/5.1": {
        "architectures": ["GlmMoeDsaForCausalLM"], "attention_bias": False, "ep_size": 1,
        "eos_token_id": [154820, 154827, 154829], "first_k_dense_replace": 3, "head_dim": 64, "hidden_size": 6144,
        "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "indexer_rope_interleave": True,
        "intermediate_size": 12288, "kv_lora_rank": 512, "max_position_embeddings": 202752,
        "model_type": "glm_moe_dsa", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 78, "num_key_value_heads": 64,
        "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 2048, "qk_head_dim": 256,
        "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-05, "rope_interleave": True,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 256,
        "vocab_size": 154880,
    },
    "phi-4 (phi3)": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 100257, "embd_pdrop": 0.0,
        "eos_token_id": 100265, "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384,
        "model_type": "phi3", "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10,
        "original_max_position_embeddings": 16384, "pad_token_id": 100349, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 250000, "sliding_window": None,
        "vocab_size": 100352,
    },
    "phi-2": {
        "architectures": ["PhiForCausalLM"], "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
        "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1,
        "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 51200,
    },
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144, "tie_word_embeddings": True,
    },
}  # fmt: skip


def config_of(name):
    return {**COMMON, **FILES[name]}


@pytest.mark.parametrize("name", FILES)
def test_released_files_have_the_reference_figures(name):
    spec = describe(config_of(name))
    assert num_parameters(spec) == FIXTURES[name]["total"]
    assert kv_bytes_per_token(spec, NumberFormat.BF16) == FIXTURES[name]["kv_bytes_per_token_bf16"]
    reference = describe(FIXTURES[name]["config"])
    assert spec.features == reference.features
    rotary, expected = (one.layers[-1].mixer.rotary for one in (spec, reference))
    assert rotary == expected


def test_vision_text_part_at_the_top_level():
    """Early GLM-4.1V files have no text_config."""
    nested = FIXTURES["GLM-4.1V-9B/AutoGLM-Phone-9B"]["config"]
    text = dict(nested["text_config"])
    del text["model_type"]
    flat = {**text, **{key: value for key, value in nested.items() if key != "text_config"}}
    assert describe(flat) == describe(nested)


def test_old_spelling_of_mrope():
    nested = FIXTURES["GLM-4.1V-9B/AutoGLM-Phone-9B"]["config"]
    text = dict(nested["text_config"])
    parameters = text.pop("rope_parameters")
    old = {
        "rope_scaling": {"rope_type": "default", "mrope_section": parameters["mrope_section"]},
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }
    assert describe({**nested, "text_config": {**text, **old}}) == describe(nested)


def test_yarn_as_the_qwen_card_tells():
    config = config_of("Qwen2.5-7B")
    config |= {
        "max_position_embeddings": 32768,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    }
    spec = describe(config)
    assert spec.layers[0].mixer.rotary.kind == "yarn"
    assert spec.max_positions == 131072
