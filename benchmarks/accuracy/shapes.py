"""The shapes of the matrix: published ones, cut or scaled so that a cell takes seconds; whole ones for few cells."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "data" / "model_fixtures.json"

WEIGHT_FORMATS = ("bf16", "int8", "int4", "nf4")
KV_FORMATS = ("bf16", "int8")
CONTEXTS = (256, 1024, 4096)
CONCURRENCIES = (1, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A published shape (`source` in the fixtures) with keys of its config changed."""

    source: str
    changes: dict[str, object] = field(default_factory=dict)


# Between them: tied and free embeddings, biases, qk-norms, sandwich norms, windows, half rotary, heads of 64 and 128,
# vocabularies of 4 k to 152 k entries.
MATRIX_SHAPES = {
    "glm-edge-1.5b, 1 layer": ModelShape(source="glm-edge-1.5b-chat", changes={"num_hidden_layers": 1}),
    "Qwen2.5-0.5B, 3 layers": ModelShape(source="Qwen2.5-0.5B", changes={"num_hidden_layers": 3}),
    "Qwen3-0.6B, 2 layers": ModelShape(source="Qwen3-0.6B", changes={"num_hidden_layers": 2}),
    "Llama-3.2-1B, 2 layers, 32 k entries": ModelShape(
        source="Llama-3.2-1B", changes={"num_hidden_layers": 2, "vocab_size": 32768}
    ),
    "Mistral-7B-v0.1, quarter width, 4 layers": ModelShape(
        source="Mistral-7B-v0.1",
        changes={
            "num_hidden_layers": 4,
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "sliding_window": 512,
        },
    ),
    "GLM-4-9B-0414, quarter width, 4 layers": ModelShape(
        source="GLM-4-9B-0414",
        changes={
            "num_hidden_layers": 4,
            "hidden_size": 1024,
            "intermediate_size": 3424,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 37888,
        },
    ),
    "glm-4-9b-chat, eighth width, 6 layers": ModelShape(
        source="glm-4-9b-chat-hf",
        changes={
            "num_hidden_layers": 6,
            "hidden_size": 512,
            "intermediate_size": 1712,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 18944,
        },
    ),
    "Qwen3-8B, sixteenth width, 8 layers": ModelShape(
        source="Qwen3-8B",
        changes={
            "num_hidden_layers": 8,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 4096,
        },
    ),
}
WHOLE_SHAPES = {
    name: ModelShape(source=name) for name in ("Qwen2.5-0.5B", "Qwen3-0.6B", "Llama-3.2-1B", "glm-edge-1.5b-chat")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One load: a shape and the settings that a user could have given."""

    shape: str
    weights: str
    kv: str
    context_tokens: int
    concurrency: int

    @property
    def key(self) -> str:
        """A name that tells cells apart."""
        return f"{self.shape} | {self.weights} | {self.kv} | {self.context_tokens} x {self.concurrency}"


def matrix_cells() -> list[Cell]:
    """Return the whole matrix, a shape's cells together."""
    return [
        Cell(shape=shape, weights=weights, kv=kv, context_tokens=context, concurrency=concurrency)
        for shape, weights, kv, context, concurrency in product(
            MATRIX_SHAPES, WEIGHT_FORMATS, KV_FORMATS, CONTEXTS, CONCURRENCIES
        )
    ]


def whole_cells() -> list[Cell]:
    """Return published shapes as they are, at one context."""
    return [
        Cell(shape=shape, weights=weights, kv="bf16", context_tokens=1024, concurrency=4)
        for shape, weights in product(WHOLE_SHAPES, ("bf16", "int8", "int4"))
    ]


def make_checkpoint(shape: str, work: Path) -> Path:
    """Return the directory of a shape's checkpoint of random weights, made if it is not there yet."""
    model = (MATRIX_SHAPES | WHOLE_SHAPES)[shape]
    name = "".join(letter if letter.isalnum() else "-" for letter in shape)
    directory = work / name
    if directory.is_dir():
        return directory
    work.mkdir(parents=True, exist_ok=True)
    fixtures: dict[str, dict[str, dict[str, object]]] = json.loads(FIXTURES.read_text())
    config = fixtures[model.source]["config"] | model.changes
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        config["layer_types"] = layer_types[: int(str(config["num_hidden_layers"]))]
    source = work / f"{name}.json"
    source.write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "tools" / "make_checkpoint.py"), name]
    command += ["--shape-from", str(source), "--output", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the checkpoint of {shape} could not be made: {done.stderr}")
    return directory
