"""tools/make_checkpoint.py: transformers loads what it writes, and names and shapes are transformers' own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from openautoglm.checkpoint.index import Checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "make_checkpoint.py"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "glm", "glm4")


def make(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "made", "--output", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_and_shapes_are_those_of_transformers(tmp_path: Path, model_type: str):
    done = make(tmp_path, "--shape-from", f"debug:{model_type}", "--layers", "2")
    assert done.returncode == 0, done.stderr
    config = AutoConfig.from_pretrained(tmp_path / "made")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    with Checkpoint.open(tmp_path / "made") as checkpoint:
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == expected
        assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}


@pytest.mark.parametrize(("dtype", "name"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")])
def test_values_shards_and_tokenizer(tmp_path: Path, dtype: str, name: str):
    arguments = (
        "--shape-from",
        "debug:glm4",
        "--dtype",
        dtype,
        "--shard-size",
        "200KiB",
        "--scale",
        "2",
        "--seed",
        "5",
    )
    done = make(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made"
    assert done.stdout.strip() == str(made)
    shards = sorted(made.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 200 * 1024 + 4096 for shard in shards)
    with Checkpoint.open(made) as checkpoint:
        assert {info.dtype for info in checkpoint.tensors.values()} == {name}
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            weights |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - no mapping
    matrix = weights["model.layers.1.mlp.gate_up_proj.weight"]
    assert abs(matrix.std().item() - 0.04) < 0.001
    assert abs(matrix.mean().item()) < 0.001
    assert abs(weights["model.norm.weight"].mean().item() - 1) < 0.05
    assert weights["model.norm.weight"].std().item() > 0.05
    assert weights["model.layers.0.self_attn.q_proj.bias"].abs().min().item() > 0
    assert not torch.equal(matrix, weights["model.layers.2.mlp.gate_up_proj.weight"])

    tokenizer = AutoTokenizer.from_pretrained(made)
    config = json.loads((made / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界!", add_special_tokens=False)) == "Grüße, 世界!"
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"]) == config["eos_token_id"][:2]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "[gMASK]<sop><|user|>\nHi"
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert np.isfinite(model(torch.tensor([[5, 6, 7]])).logits.detach().numpy()).all()


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path):
    contents = []
    for directory, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        done = make(tmp_path / directory, "--shape-from", "debug:llama", "--seed", seed)
        assert done.returncode == 0, done.stderr
        contents.append((tmp_path / directory / "made" / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_a_fixture_s_shape_with_the_demo_s_tokenizer(tmp_path: Path):
    done = make(tmp_path, "--shape-from", "Qwen2.5-0.5b", "--layers", "1", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 1
    with Checkpoint.open(tmp_path / "made") as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].shape == (151936, 896)
        assert "lm_head.weight" not in checkpoint.tensors
    document = json.loads((tmp_path / "made" / "tokenizer.json").read_text())
    assert sorted(document["model"]["vocab"].values()) == list(range(151936))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape-from", "absent"), "no fixture"),
        (("--shape-from", "phi-2"), "cannot be written"),
        (("--shape-from", "debug:absent"), "absent"),
        (("--shape-from", "debug:glm", "--shard-size", "much"), "not a size"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path: Path, arguments: tuple[str, ...], words: str):
    done = make(tmp_path, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(tmp_path: Path):
    (tmp_path / "made").mkdir()
    done = make(tmp_path, "--shape-from", "debug:glm")
    assert done.returncode == 1
    assert "exists" in done.stderr
