"""Descriptions against the transformers classes on the meta device: parameter counts, tensor names and shapes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, known_model_types, loadable_model_types, weight_map
from openautoglm.memory.weights import num_parameters

IN_TRANSFORMERS = [name for name in known_model_types() if name != "chatglm"]
LOADABLE = [name for name in loadable_model_types() if name != "chatglm"]

VARIANTS = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "head_dim": None}),
    ("qwen3", {"attention_bias": False, "tie_word_embeddings": True}),
    ("glm", {"attention_bias": False}),
    ("glm4", {"attention_bias": False, "tie_word_embeddings": True}),
    ("glm4_moe", {"use_qk_norm": False, "attention_bias": False, "n_shared_experts": 2, "first_k_dense_replace": 0}),
    ("glm4_moe_lite", {"q_lora_rank": None}),
    ("glm4_moe_lite", {"attention_bias": True}),
    ("glm_moe_dsa", {"attention_bias": True, "indexer_types": None, "index_topk_freq": 2}),
    ("qwen3_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [1], "attention_bias": True}),
    ("phi", {"qk_layernorm": True}),
    ("gemma3_text", {"attention_bias": True, "tie_word_embeddings": False}),
]


def meta_model(config):
    classes = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    with torch.device("meta"):
        return classes.from_config(AutoConfig.for_model(**config))


def check_count(config):
    model = meta_model(config)
    assert num_parameters(describe(config)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("model_type", IN_TRANSFORMERS)
def test_parameters_of_debug_configs(model_type):
    check_count(debug_config(model_type))


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_parameters_of_variants(model_type, changes):
    check_count({**debug_config(model_type), **changes})


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("model_type", ["glm4v", "glm4v_moe", "glm5_next"])
def test_parameters_of_towers(model_type, biased):
    config = debug_config(model_type)
    config["vision_config"] |= {"attention_bias": biased, "patch_size": 7, "depth": 3}
    check_count(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", LOADABLE)
def test_every_tensor_is_bound(model_type, tied):
    config = {**debug_config(model_type), "tie_word_embeddings": tied}
    shapes = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    bound = weight_map(describe(config), config, shapes)
    parts = [part for binding in (*bound.matrices, *bound.vectors) for part in binding.parts]
    assert {part.name for part in parts} | set(bound.ignored) == set(shapes)
    assert set(bound.ignored) == ({"lm_head.weight"} if tied else set())
    rows = {}
    for part in parts:
        assert shapes[part.name] == part.shape
        rows.setdefault(part.name, []).extend(range(part.row_begin, part.row_end))
    for name, taken in rows.items():
        assert taken == list(range(shapes[name][0])), f"rows of {name} must be read once, in order"
