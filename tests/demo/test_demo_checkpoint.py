"""The embedded checkpoint is a normal Hugging Face checkpoint, small, readable by transformers, and trained.

transformers is the independent oracle throughout: nothing here uses the package's own reader or engine.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from openautoglm.demo import checkpoint_directory

MAX_DIRECTORY_BYTES = 25 * 1024 * 1024
CHECKPOINT_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
# The committed model needs 0.98 bits for a byte of this text; an untrained one needs more than 3.
MAX_BITS_PER_BYTE = 1.4

# Written for this test: it is in no training file.
UNSEEN_SOURCE = '''\
"""Keep a rolling window of measurements and report simple figures about it."""

import math
from collections import deque


class RollingWindow:
    """A fixed number of the latest values.

    Values are added with append(); when the window is full, the oldest
    value is dropped.  All methods raise ValueError if the window is empty.
    """

    def __init__(self, size):
        if size < 1:
            raise ValueError("size must be at least 1")
        self.size = size
        self.values = deque(maxlen=size)

    def append(self, value):
        """Add a value to the window and return the value that was dropped.

        Return None if no value was dropped.
        """
        dropped = None
        if len(self.values) == self.size:
            dropped = self.values[0]
        self.values.append(value)
        return dropped

    def mean(self):
        """Return the arithmetic mean of the values in the window."""
        if not self.values:
            raise ValueError("the window is empty")
        return sum(self.values) / len(self.values)

    def deviation(self):
        """Return the standard deviation of the values in the window."""
        mean = self.mean()
        total = 0.0
        for value in self.values:
            total += (value - mean) ** 2
        return math.sqrt(total / len(self.values))
'''


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint_directory() / "tokenizer.json"))


@cache
def _model() -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_directory(), dtype=torch.float32)
    return model.eval()


def _read(name: str) -> dict[str, Any]:
    return json.loads((checkpoint_directory() / name).read_text(encoding="utf-8"))


def _bits_per_byte(ids: list[int], num_bytes: int) -> float:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = _model()(tokens).logits[0]
    # The two prefix tokens are given; every later token is scored.
    nats = torch.nn.functional.cross_entropy(logits[1:-1], tokens[0, 2:], reduction="sum")
    return float(nats) / math.log(2) / num_bytes


def test_directory_is_complete_and_small() -> None:
    directory = checkpoint_directory()
    assert isinstance(directory, Path)
    assert [name for name in CHECKPOINT_FILES if not (directory / name).is_file()] == []
    total_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert total_bytes <= MAX_DIRECTORY_BYTES


def test_config_is_glm4_with_sides_in_multiples_of_128() -> None:
    config = _read("config.json")
    assert config["model_type"] == "glm"
    assert config["architectures"] == ["GlmForCausalLM"]
    assert config["attention_bias"] is True
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.5
    heads_size = config["num_attention_heads"] * config["head_dim"]
    key_size = config["num_key_value_heads"] * config["head_dim"]
    sides = (config["hidden_size"], config["intermediate_size"], heads_size, key_size)
    assert [side % 128 for side in sides] == [0, 0, 0, 0]


def test_transformers_loads_every_weight() -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint_directory(), dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "GlmForCausalLM"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert model.config.vocab_size == _tokenizer().get_vocab_size()


def test_stop_tokens_are_those_of_glm4() -> None:
    stops = [_tokenizer().token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    generation = _read("generation_config.json")
    assert generation["eos_token_id"] == stops
    assert _read("config.json")["eos_token_id"] == stops
    assert generation["pad_token_id"] == stops[0]
    assert generation["do_sample"] is True


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x ** 2\r\n\r\n",
        "你好，世界。大语言模型",
        "emoji 🙂👩‍👩‍👧‍👦 and é, ß, Ω",
        "".join(chr(code) for code in range(256)),
        "\ufeff\u2028 zero\u200bwidth \x00 nul   ",
        " leading and trailing  \n\n\n    ",
        "<|user|> and [gMASK] are special",
    ],
)
def test_any_text_survives_encode_and_decode(text: str) -> None:
    ids = _tokenizer().encode(text, add_special_tokens=False).ids
    assert _tokenizer().decode(ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token() -> None:
    # Each character's bytes come back even where no merge was ever learnt.
    text = "".join(chr(code) for code in (*range(0x80), *range(0x400, 0x460), 0x4E00, 0x10FFFF, 0x1F642))
    ids = _tokenizer().encode(text, add_special_tokens=False).ids
    assert _tokenizer().decode(ids, skip_special_tokens=False) == text


def test_transformers_tokenizer_agrees_and_adds_the_prefix() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_directory())
    ids = tokenizer("import os\n").input_ids
    assert ids == _tokenizer().encode("import os\n").ids
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["[gMASK]", "<sop>"]
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "import os\n"


def test_chat_template_renders_glm4_turns() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_directory())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What does len do?"},
        {"role": "assistant", "content": "Return the number of items in a container."},
        {"role": "user", "content": "And sum?\n"},
    ]
    expected = (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nWhat does len do?<|assistant|>\n"
        "Return the number of items in a container.<|user|>\nAnd sum?\n"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<|assistant|>\n"
    ids = _tokenizer().encode(prompt, add_special_tokens=False).ids
    assert ids[:3] == [_tokenizer().token_to_id(token) for token in ("[gMASK]", "<sop>", "<|system|>")]


def test_model_predicts_unseen_python() -> None:
    num_bytes = len(UNSEEN_SOURCE.encode("utf-8"))
    ids = _tokenizer().encode(UNSEEN_SOURCE).ids
    trained = _bits_per_byte(ids, num_bytes)
    assert trained < MAX_BITS_PER_BYTE
    # The figure comes from context, not from token frequencies: the same tokens in reverse order cost far more.
    assert _bits_per_byte([*ids[:2], *reversed(ids[2:])], num_bytes) > 1.5 * trained
