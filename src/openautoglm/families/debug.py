"""A debug-size config.json for every known model type: a few layers, valid for transformers too.

Sizes are chosen to tell mistakes apart: heads that do not share the hidden size, more query than key-value heads,
sizes that differ pairwise, token ids below the vocabulary.
"""

from __future__ import annotations

from openautoglm.errors import UnknownModelTypeError

_TOKENS: dict[str, object] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

_DECODER: dict[str, object] = {
    **_TOKENS,
    "vocab_size": 160,
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

_HALF_ROTARY: dict[str, object] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
}

_GLM_EXPERTS: dict[str, object] = {
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}

_LATENT: dict[str, object] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}

_INDEXER: dict[str, object] = {"index_topk": 32, "index_head_dim": 16, "index_n_heads": 2}

_VISION: dict[str, object] = {
    "depth": 2,
    "hidden_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 96,
    "intermediate_size": 80,
    "attention_bias": False,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

_MROPE: dict[str, object] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 3, 3],
    }
}


def debug_config(model_type: str) -> dict[str, object]:
    """Return a fresh debug-size config; raise `UnknownModelTypeError` for a type that is not known."""
    config = _CONFIGS.get(model_type)
    if config is None:
        raise UnknownModelTypeError(f"no debug config for {model_type!r}: known are {', '.join(_CONFIGS)}")
    return _copied({"model_type": model_type, **config})


def _without(config: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in keys}


def _copied(values: dict[str, object]) -> dict[str, object]:
    """Return a deep copy of nested dicts and lists."""
    return {
        key: _copied(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        for key, value in values.items()
    }


def _multimodal(text: dict[str, object], vision: dict[str, object]) -> dict[str, object]:
    marks: dict[str, object] = {"image_token_id": 150, "video_token_id": 151, "tie_word_embeddings": False}
    return {**marks, "text_config": text, "vision_config": vision}


_GLM4_MOE: dict[str, object] = {
    **_DECODER,
    **_HALF_ROTARY,
    **_GLM_EXPERTS,
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
}

_CONFIGS: dict[str, dict[str, object]] = {
    "chatglm": {
        "eos_token_id": 2,
        "pad_token_id": 0,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "ffn_hidden_size": 176,
        "fp32_residual_connection": False,
        "hidden_size": 96,
        "kv_channels": 32,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 3,
        "original_rope": True,
        "padded_vocab_size": 160,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": 50,
        "seq_length": 256,
        "tie_word_embeddings": False,
    },
    "gemma3_text": {
        **_without(_DECODER, "hidden_act", "rope_parameters"),
        "num_hidden_layers": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        },
    },
    "glm": {**_DECODER, **_HALF_ROTARY, "attention_bias": True},
    "glm4": {**_DECODER, **_HALF_ROTARY, "attention_bias": True},
    "glm4_moe": _GLM4_MOE,
    "glm4_moe_lite": {
        **_without(_DECODER, "head_dim"),
        **_GLM_EXPERTS,
        **_LATENT,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "glm4v": _multimodal(
        {"model_type": "glm4v_text", **_without(_DECODER, "head_dim", "tie_word_embeddings"), "hidden_size": 128}
        | _MROPE,
        {**_VISION, "out_hidden_size": 128},
    ),
    "glm4v_moe": _multimodal(
        {"model_type": "glm4v_moe_text", **_without(_GLM4_MOE, "use_qk_norm", "num_nextn_predict_layers"), **_MROPE},
        _VISION,
    ),
    "glm5_next": _multimodal(
        {
            "model_type": "glm5_next_text",
            **_without(_DECODER, "head_dim", "rope_parameters"),
            **_GLM_EXPERTS,
            **_LATENT,
            **_INDEXER,
            "num_hidden_layers": 4,
            "qk_rope_head_dim": 0,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "index_kpool": 4,
            "hc_mult": 2,
        },
        {**_VISION, "attention_bias": True, "projection_intermediate_size": 112},
    ),
    "glm_moe_dsa": {
        **_without(_DECODER, "head_dim"),
        **_GLM_EXPERTS,
        **_LATENT,
        **_INDEXER,
        "first_k_dense_replace": 1,
        "indexer_types": ["full", "full", "shared"],
    },
    "llama": dict(_DECODER),
    "mistral": {**_DECODER, "sliding_window": 24},
    "phi": {
        **_without(_DECODER, "head_dim", "rms_norm_eps", "hidden_act"),
        **_HALF_ROTARY,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "hidden_size": 128,
        "num_key_value_heads": 4,
    },
    "phi3": {
        **_without(_DECODER, "head_dim"),
        "hidden_size": 128,
        "original_max_position_embeddings": 256,
        "sliding_window": 24,
    },
    "qwen2": {
        **_without(_DECODER, "head_dim"),
        "hidden_size": 128,
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
    "qwen3": {**_DECODER, "attention_bias": True, "use_sliding_window": False, "sliding_window": None},
    "qwen3_moe": {
        **_DECODER,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
    },
}
