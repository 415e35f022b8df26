"""GLM-4's decoder, lean enough to train on one processor core; parameter names are those of `GlmForCausalLM`.

Shape suffixes: B batch, T tokens, D hidden, H query heads, K key/value heads, E head dimension, V vocabulary.
Parameters stay in float32; matrix products run in `compute_dtype`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The dimensions of a `glm` model; all matrix sides are multiples of 128."""

    vocabulary: int = 4096
    hidden: int = 384
    intermediate: int = 1024
    num_layers: int = 5
    num_heads: int = 6
    num_key_value_heads: int = 2
    head_dimension: int = 64
    rotary_fraction: float = 0.5
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    max_position_tokens: int = 2048

    def config(self, special: dict[str, int]) -> dict[str, object]:
        """The `config.json` of this shape, in transformers' v5 spelling."""
        stops = [special["<|endoftext|>"], special["<|user|>"], special["<|observation|>"]]
        return {
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": stops,
            "pad_token_id": stops[0],
            "head_dim": self.head_dimension,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_position_tokens,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.rotary_fraction,
            },
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }


class Linear(nn.Linear):
    """A float32 parameter multiplied in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) * weight, computed in float32, returned in `dtype`."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor, dtype: torch.dtype) -> Tensor:
        x = x_BTD.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return (x * scale * self.weight).to(dtype)


def rotate(x_BHTE: Tensor, cosine_TR: Tensor, sine_TR: Tensor) -> Tensor:
    """Rotate adjacent pairs of the first 2R channels (GLM's interleaved order); the others pass."""
    num_pairs = cosine_TR.shape[-1]
    even = x_BHTE[..., 0 : 2 * num_pairs : 2]
    odd = x_BHTE[..., 1 : 2 * num_pairs : 2]
    turned = torch.stack((even * cosine_TR - odd * sine_TR, odd * cosine_TR + even * sine_TR), dim=-1).flatten(-2)
    return torch.cat((turned.to(x_BHTE.dtype), x_BHTE[..., 2 * num_pairs :]), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with biases on query, key and value."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query_size = shape.num_heads * shape.head_dimension
        key_size = shape.num_key_value_heads * shape.head_dimension
        self.q_proj = Linear(shape.hidden, query_size, bias=True)
        self.k_proj = Linear(shape.hidden, key_size, bias=True)
        self.v_proj = Linear(shape.hidden, key_size, bias=True)
        self.o_proj = Linear(query_size, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor, cosine_TR: Tensor, sine_TR: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        shape = self.shape
        heads = (batch, tokens, -1, shape.head_dimension)
        query = rotate(self.q_proj(x_BTD).view(heads).transpose(1, 2), cosine_TR, sine_TR)
        key = rotate(self.k_proj(x_BTD).view(heads).transpose(1, 2), cosine_TR, sine_TR)
        value = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        group = shape.num_heads // shape.num_key_value_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)))


class FeedForward(nn.Module):
    """SwiGLU with the fused gate/up matrix (gate rows first)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down_proj = Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        return cast(Tensor, self.down_proj(functional.silu(gate) * up))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RootMeanSquareNorm(shape.hidden, shape.norm_epsilon)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.hidden, shape.norm_epsilon)

    def forward(self, x_BTD: Tensor, cosine_TR: Tensor, sine_TR: Tensor, dtype: torch.dtype) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD, dtype), cosine_TR, sine_TR)
        return x_BTD + cast(Tensor, self.mlp(self.post_attention_layernorm(x_BTD, dtype)))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RootMeanSquareNorm(shape.hidden, shape.norm_epsilon)


class Network(nn.Module):
    """The whole model; the output matrix is the embedding (tied)."""

    def __init__(self, shape: Shape, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.model = Decoder(shape)
        num_pairs = int(shape.head_dimension * shape.rotary_fraction) // 2
        exponent = torch.arange(num_pairs, dtype=torch.float32) / num_pairs
        angle = torch.arange(shape.max_position_tokens)[:, None] * (1.0 / shape.rope_theta**exponent)
        self.cosine = nn.Buffer(angle.cos(), persistent=False)
        self.sine = nn.Buffer(angle.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                # Each block starts as the identity: training is stable at Muon's large steps.
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Logits [B, T, V] in `compute_dtype`."""
        tokens = input_ids_BT.shape[1]
        cosine_TR, sine_TR = self.cosine[:tokens], self.sine[:tokens]
        dtype = self.compute_dtype
        x_BTD = self.model.embed_tokens(input_ids_BT).to(dtype)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, cosine_TR, sine_TR, dtype)
        return functional.linear(self.model.norm(x_BTD, dtype), self.model.embed_tokens.weight.to(dtype))

    def loss(self, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats."""
        logits = self(input_ids_BT)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets_BT.flatten())
