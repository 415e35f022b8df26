"""A model of twice the memory there is answers, within its plan: its layers stay on disk and nothing is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cgroup.checkpoints import make_checkpoint
from tests.cgroup.memory_group import MemoryGroup

pytestmark = pytest.mark.cgroup

COMMAND = [sys.executable, "-m", "openautoglm"]
MIB = 1 << 20
LIMIT_BYTES = 300 * MIB
SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 44,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), SHAPE)


def test_a_model_of_twice_the_memory_answers(model: Path, tmp_path: Path):
    settings = ["--quant", "int8", "--context", "256", "--concurrency", "1", "--offload-dir", str(tmp_path / "disk")]
    ask = [*COMMAND, "run", str(model), "once upon", "--raw", "--max-tokens", "8", "--temperature", "0", *settings]
    whole = subprocess.run([*COMMAND, "plan", str(model), *settings, "--json"], capture_output=True, check=True)
    assert json.loads(whole.stdout)["breakdown"]["weight_bytes"] >= 2 * LIMIT_BYTES
    answers = []
    for kind in ("packs and writes", "reads"):
        with MemoryGroup(LIMIT_BYTES) as group:
            done = group.run(ask)
            assert group.num_kills() == 0, kind
        assert done.returncode == 0, done.stderr
        assert "on disk" in done.stderr
        assert "direct, past the page cache" in done.stderr
        answers.append(done.stdout)
    in_memory = subprocess.run([*ask, "--offload", "none"], capture_output=True, text=True, check=True)
    assert answers == [in_memory.stdout] * 2


def test_none_is_a_refusal_that_names_the_way_out(model: Path):
    with MemoryGroup(LIMIT_BYTES) as group:
        done = group.run([*COMMAND, "run", str(model), "hello", "--raw", "--offload", "none"])
        assert group.num_kills() == 0
    assert done.returncode == 3, done.stderr
    assert "--offload auto" in done.stderr
