"""Every loadable family against transformers in fp32: prefill in one step and in chunks, then one token at a time."""

import numpy as np
import pytest

from openautoglm.spec.formats import NumberFormat
from tests.parity.models import load, make_tiny, relative_error

PROMPT, TOTAL = 145, 156
FP32_ERROR = 2e-5  # relative root mean square of the worst position: a few hundred roundings of 6e-8

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
WHOLE_HEAD = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}

CASES = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-wide-heads": ("llama", {"head_dim": 128, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2-no-window": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
    "qwen3-plain": ("qwen3", {"attention_bias": False, "tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "glm": ("glm", {}),
    "glm-edge": ("glm", {"attention_bias": False, "tie_word_embeddings": True, "rope_parameters": WHOLE_HEAD}),
    "glm4": ("glm4", {}),
    "glm4-32b": ("glm4", {"attention_bias": False}),
    "chatglm": ("chatglm", {}),
    "phi3": ("phi3", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_transformers(case, tmp_path):
    model_type, changes = CASES[case]
    tiny = make_tiny(model_type, tmp_path / "model", **changes)
    tokens = tiny.tokens(TOTAL)
    expected = tiny.logits(tokens)
    runner = load(tiny.directory, NumberFormat.F32)
    prefill = runner.feed(tokens[:PROMPT])
    decoded = np.concatenate([runner.feed(tokens[index : index + 1]) for index in range(PROMPT, TOTAL)])
    assert relative_error(prefill, expected[:PROMPT]) < FP32_ERROR
    assert relative_error(decoded, expected[PROMPT:]) < FP32_ERROR
    assert relative_error(decoded, tiny.decode_logits(tokens, PROMPT)) < FP32_ERROR
    runner.executor.close()


@pytest.mark.parametrize("case", ["glm4", "qwen2"])
def test_chunks_change_no_byte(case, tmp_path):
    model_type, changes = CASES[case]
    tiny = make_tiny(model_type, tmp_path / "model", **changes)
    tokens = tiny.tokens(TOTAL)
    whole = load(tiny.directory, NumberFormat.F32)
    chunked = load(tiny.directory, NumberFormat.F32)
    expected = whole.feed(tokens)
    found = np.concatenate([chunked.feed(tokens[index : index + 5]) for index in range(0, TOTAL, 5)])
    np.testing.assert_array_equal(found, expected)
    whole.executor.close()
    chunked.executor.close()
