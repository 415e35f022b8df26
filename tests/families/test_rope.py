"""Rotary frequencies against transformers' own functions, and the two spellings of config.json against each other."""

import math

import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from openautoglm.errors import ModelError, UnknownConfigKeyError
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe

SETTINGS = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 5e8},
    {"rope_type": "linear", "rope_theta": 1e6, "factor": 3.7},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 7.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "attention_factor": 1.3, "beta_fast": 20, "beta_slow": 2},
    {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "truncate": False, "original_max_position_embeddings": 999},
    {"rope_type": "yarn", "rope_theta": 1e5, "factor": None, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0.5},
]  # fmt: skip


def oracle(config):
    settings = AutoConfig.for_model(**config)
    kind = settings.rope_parameters["rope_type"]
    if kind != "default":
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](settings)
        return frequencies.tolist(), factor
    # the plain kind lives in each model; linear scaling by 1 is the same
    settings.rope_parameters |= {"rope_type": "linear", "factor": 1.0}
    frequencies, factor = ROPE_INIT_FUNCTIONS["linear"](settings)
    return frequencies.tolist(), factor


def rotary_of(config):
    return describe(config).layers[0].mixer.rotary


@pytest.mark.parametrize("head_dim", [4, 32, 64, 128, 256])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: str(settings["rope_type"]))
def test_equal_to_transformers(settings, head_dim):
    config = {**debug_config("llama"), "head_dim": head_dim, "rope_parameters": dict(settings)}
    expected, factor = oracle({**config, "rope_parameters": dict(settings)})
    rotary = rotary_of(config)
    assert len(rotary.inverse_frequencies) == head_dim // 2
    # torch's vector power is now and then off in the last place of fp32; all else must be equal
    assert rotary.inverse_frequencies == pytest.approx(expected, rel=2.5e-7, abs=0)
    different = [pair for pair in zip(rotary.inverse_frequencies, expected, strict=True) if pair[0] != pair[1]]
    assert len(different) <= 2
    assert rotary.attention_factor == factor
    assert rotary.kind == settings["rope_type"]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_partial_rotary(share):
    config = debug_config("glm") | {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "partial_rotary_factor": share}
    }
    expected, factor = oracle(config)
    rotary = rotary_of(config)
    assert rotary.dimensions == int(32 * share)
    assert rotary.inverse_frequencies == pytest.approx(expected, rel=2.5e-7, abs=0)
    assert rotary.attention_factor == factor


def test_longrope_is_described_by_its_short_form():
    settings = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * index for index in range(16)],
        "long_factor": [2.0 + index for index in range(16)],
    }
    config = debug_config("phi3") | {
        "rope_parameters": settings,
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 512,
    }
    expected, factor = oracle({**config, "rope_parameters": dict(settings)})
    rotary = rotary_of(config)
    assert rotary.inverse_frequencies == pytest.approx(expected, rel=2.5e-7, abs=0)
    assert rotary.attention_factor == factor
    assert rotary.kind == "longrope"
    legacy = {key: value for key, value in settings.items() if key != "rope_type"} | {"type": "su"}
    assert rotary_of({**config, "rope_parameters": None, "rope_scaling": legacy}) == rotary


@pytest.mark.parametrize("model_type", ["glm", "glm4", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"])
def test_old_spelling_equals_new(model_type):
    new = debug_config(model_type)
    old = dict(new)
    parameters = old.pop("rope_parameters") | {"rope_theta": 250000.0}
    old["rope_theta"] = parameters["rope_theta"]
    if "partial_rotary_factor" in parameters:
        old["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    assert describe({**old, "rope_scaling": None}) == describe({**new, "rope_parameters": parameters})


def test_old_scaling_equals_new():
    config = debug_config("qwen2")
    del config["rope_parameters"]
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}
    new = {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    }
    assert describe({**config, **old}) == describe({**config, **new})


def test_merge_order_is_that_of_transformers():
    config = debug_config("llama")
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config |= {
        "rope_theta": 777.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 55.0},
        "rope_scaling": {**scaling, "original_max_position_embeddings": 32},
        "original_max_position_embeddings": 64,
    }
    expected, _ = oracle(
        {**config, "rope_parameters": dict(config["rope_parameters"]), "rope_scaling": dict(config["rope_scaling"])}
    )
    assert rotary_of(config).inverse_frequencies == pytest.approx(expected, rel=2.5e-7, abs=0)


def test_glm_turns_half_a_head_by_default():
    config = debug_config("glm")
    del config["rope_parameters"]
    assert rotary_of(config).dimensions == 16
    assert rotary_of({**config, "partial_rotary_factor": 1.0}).dimensions == 32
    assert rotary_of(config).interleaved


def test_mscale_of_yarn_is_the_papers():
    config = debug_config("llama") | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}
    assert rotary_of(config).attention_factor == 0.1 * math.log(4.0) + 1.0


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "spiral"}, "rope_type"),
        ({"rope_type": None}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": "4"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2, "high_freq_factor": 2}, "high_freq_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -1e4}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (["default"], "rope_parameters"),
    ],
)
def test_bad_rope_settings_name_the_key(parameters, named):
    with pytest.raises(ModelError, match=named):
        describe({**debug_config("llama"), "rope_parameters": parameters})


def test_unknown_rope_key_is_refused():
    parameters = {"rope_type": "default", "llama_4_scaling_beta": 0.1}
    with pytest.raises(UnknownConfigKeyError, match=r"rope_parameters\.llama_4_scaling_beta"):
        describe({**debug_config("mistral"), "rope_parameters": parameters})
    with pytest.raises(UnknownConfigKeyError, match=r"rope_parameters\.mrope_section"):
        describe({**debug_config("llama"), "rope_parameters": {"mrope_section": [4, 6, 6]}})


def test_odd_rotary_width_is_refused():
    with pytest.raises(ModelError, match="even"):
        describe({**debug_config("glm"), "head_dim": 6})
