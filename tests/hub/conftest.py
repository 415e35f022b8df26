"""A stub hub with one small model, and a way to run code against it in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hub.stub_hub import StubFile, StubHub, StubRepository

SOURCE = Path(__file__).parents[2] / "src"
NAME = "org/model"
TEXTS = {
    "config.json": json.dumps({"model_type": "llama", "hidden_size": 8}).encode(),
    "generation_config.json": b'{"eos_token_id": 1}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"chat_template": "x"}',
}


def weights(seed: int, names: tuple[str, ...], num_rows: int = 600) -> bytes:
    generator = np.random.default_rng(seed)
    return save({name: generator.standard_normal((num_rows, 500), dtype=np.float32) for name in names})


def sharded_files() -> dict[str, StubFile]:
    """Two shards of 2.4 MB each, an index, the texts, and files that nobody should fetch."""
    shards = {"model-00001-of-00002.safetensors": ("a", "b"), "model-00002-of-00002.safetensors": ("c", "d")}
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    files = {name: StubFile(content) for name, content in TEXTS.items()}
    files["model.safetensors.index.json"] = StubFile(json.dumps(index).encode())
    for seed, (shard, names) in enumerate(shards.items()):
        files[shard] = StubFile(weights(seed, names), large=True)
    files["pytorch_model.bin"] = StubFile(b"never fetched", large=True)
    files["modeling_model.py"] = StubFile(b"raise SystemExit('never run')")
    files["nested/config.json"] = StubFile(b"{}")
    files["../outside.json"] = StubFile(b"{}")
    return files


@dataclass
class Client:
    """Runs python against the hub with a cache of its own."""

    hub: StubHub
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return kept | {
            "PYTHONPATH": str(SOURCE), "HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "20",
        } | self.environment | extra  # fmt: skip

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment(extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home.parent,
        )

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **extra)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def cli(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command line; a traceback is never acceptable."""
        done = self.run("-m", "openautoglm", *arguments, **extra)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def blobs(self) -> list[Path]:
        return sorted((self.home / "hub").glob("models--*/blobs/*"))


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with StubHub({NAME: StubRepository(sharded_files())}) as stub:
        yield stub


@pytest.fixture
def client(hub: StubHub, tmp_path: Path) -> Client:
    home = tmp_path / "home"
    home.mkdir()
    return Client(hub, home)
