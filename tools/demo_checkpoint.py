"""Writing, reading and measuring the demo checkpoint (plain Hugging Face files)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from demo_corpus import Document
from demo_network import Network, Shape
from demo_tokenizer import END_OF_TEXT, special_ids, write_tokenizer

EVALUATION_WINDOW_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Negative log-likelihood over whole documents."""

    num_documents: int
    num_bytes: int
    num_tokens: int
    nats: float

    @property
    def bits_per_byte(self) -> float:
        """Total log-likelihood in bits over the UTF-8 bytes of the documents."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def nats_per_token(self) -> float:
        """Mean over the scored tokens."""
        return self.nats / self.num_tokens


def write_checkpoint(network: Network, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights (bf16), configuration and tokenizer; each file appears whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    special = special_ids(tokenizer)
    config = network.shape.config(special)
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": special[END_OF_TEXT],
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        partial = directory / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.rename(directory / name)
    write_tokenizer(tokenizer, directory)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
    partial = directory / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.rename(directory / "model.safetensors")


def read_checkpoint(directory: Path, *, compute_dtype: torch.dtype) -> tuple[Network, Tokenizer]:
    """Load what `write_checkpoint` wrote."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    shape = Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dimension=config["head_dim"],
        rotary_fraction=rope["partial_rotary_factor"],
        rope_theta=rope["rope_theta"],
        norm_epsilon=config["rms_norm_eps"],
        max_position_tokens=config["max_position_embeddings"],
    )
    network = Network(shape, compute_dtype=compute_dtype)
    network.load_state_dict(load_file(str(directory / "model.safetensors")))
    return network, Tokenizer.from_file(str(directory / "tokenizer.json"))


@torch.no_grad()
def measure(network: Network, tokenizer: Tokenizer, documents: list[Document]) -> Measurement:
    """Score every byte of `documents` once.

    Windows of 1024 tokens advance by 512: each scored token sees 512 to 1023 earlier ones (fewer only at a
    document's start, which is `[gMASK]<sop>`); those two prefix tokens are given, not scored.
    """
    stride = EVALUATION_WINDOW_TOKENS // 2
    nats, num_tokens = 0.0, 0
    for document in documents:
        ids = torch.tensor(tokenizer.encode(document.text).ids)
        scored_to = 2
        for start in range(0, max(len(ids) - stride, 1), stride):
            end = min(start + EVALUATION_WINDOW_TOKENS, len(ids))
            logits = network(ids[None, start : end - 1])[0, scored_to - 1 - start :]
            nats += float(functional.cross_entropy(logits.float(), ids[scored_to:end], reduction="sum"))
            num_tokens += end - scored_to
            scored_to = end
    return Measurement(
        num_documents=len(documents),
        num_bytes=sum(document.num_bytes for document in documents),
        num_tokens=num_tokens,
        nats=nats,
    )
