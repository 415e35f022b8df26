"""GLM-4's decoder, lean enough to train on one processor core; parameter names are those of `GlmForCausalLM`.

Shape suffixes: b batch, t tokens, d hidden, h heads, e head dimension, r rotary pairs.
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
        """Multiply by the weight cast to the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) * weight, computed in float32, returned in `dtype`."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_btd: Tensor, dtype: torch.dtype) -> Tensor:
        """The normalised input in `dtype`, same shape."""
        x = x_btd.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return (x * scale * self.weight).to(dtype)


def rotate(x_bhte: Tensor, cosine_tr: Tensor, sine_tr: Tensor) -> Tensor:
    """Rotate adjacent pairs of the first 2R channels (GLM's interleaved order); the others pass."""
    num_pairs = cosine_tr.shape[-1]
    even = x_bhte[..., 0 : 2 * num_pairs : 2]
    odd = x_bhte[..., 1 : 2 * num_pairs : 2]
    turned = torch.stack((even * cosine_tr - odd * sine_tr, odd * cosine_tr + even * sine_tr), dim=-1).flatten(-2)
    return torch.cat((turned.to(x_bhte.dtype), x_bhte[..., 2 * num_pairs :]), dim=-1)


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

    def forward(self, x_btd: Tensor, cosine_tr: Tensor, sine_tr: Tensor) -> Tensor:
        """Causal attention over the T tokens of each row; same shape as the input."""
        batch, tokens, _ = x_btd.shape
        shape = self.shape
        heads = (batch, tokens, -1, shape.head_dimension)
        query = rotate(self.q_proj(x_btd).view(heads).transpose(1, 2), cosine_tr, sine_tr)
        key = rotate(self.k_proj(x_btd).view(heads).transpose(1, 2), cosine_tr, sine_tr)
        value = self.v_proj(x_btd).view(heads).transpose(1, 2)
        group = shape.num_heads // shape.num_key_value_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast("Tensor", self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)))


class FeedForward(nn.Module):
    """SwiGLU with the fused gate/up matrix (gate rows first)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down_proj = Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        """silu(gate) * up, projected back; same shape as the input."""
        gate, up = self.gate_up_proj(x_btd).chunk(2, dim=-1)
        return cast("Tensor", self.down_proj(functional.silu(gate) * up))


class Layer(nn.Module):
    """Pre-norm block: attention, then the feed-forward, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RootMeanSquareNorm(shape.hidden, shape.norm_epsilon)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.hidden, shape.norm_epsilon)

    def forward(self, x_btd: Tensor, cosine_tr: Tensor, sine_tr: Tensor, dtype: torch.dtype) -> Tensor:
        """The residual stream after this block."""
        x_btd = x_btd + self.self_attn(self.input_layernorm(x_btd, dtype), cosine_tr, sine_tr)
        return x_btd + cast("Tensor", self.mlp(self.post_attention_layernorm(x_btd, dtype)))


class Decoder(nn.Module):
    """Embedding, layers and the final norm, named as in transformers; `Network.forward` runs them."""

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

    def forward(self, input_ids_bt: Tensor) -> Tensor:
        """Logits [B, T, V] in `compute_dtype`."""
        tokens = input_ids_bt.shape[1]
        cosine_tr, sine_tr = self.cosine[:tokens], self.sine[:tokens]
        dtype = self.compute_dtype
        x_btd = self.model.embed_tokens(input_ids_bt).to(dtype)
        for layer in self.model.layers:
            x_btd = layer(x_btd, cosine_tr, sine_tr, dtype)
        return functional.linear(self.model.norm(x_btd, dtype), self.model.embed_tokens.weight.to(dtype))

    def loss(self, input_ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats."""
        logits = self(input_ids_bt)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets_bt.flatten())
