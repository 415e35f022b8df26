"""Names and shapes of every tensor of a model, from its config.json, as transformers writes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from openautoglm.errors import OpenAutoGLMError

FIXTURES = Path(__file__).parents[1] / "tests" / "data" / "model_fixtures.json"
DEBUG_VOCAB_SIZE = 512


class Kind(StrEnum):
    """How a tensor is filled: around 0, or around 1."""

    MATRIX = "matrix"
    BIAS = "bias"
    NORM = "norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes the families' tensors. Biases: True, False, or the config's key and its default."""

    architecture: str
    qkv_bias: bool | tuple[str, bool]
    output_bias: bool | tuple[str, bool] = False
    mlp_bias: bool | tuple[str, bool] = False
    fused_gate_up: bool = False
    qk_norm: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


_ATTENTION_BIAS = ("attention_bias", False)
FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        qkv_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        mlp_bias=("mlp_bias", False),
    ),
    "mistral": Family(architecture="MistralForCausalLM", qkv_bias=False),
    "qwen2": Family(architecture="Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM", qkv_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, qk_norm=True
    ),
    "glm": Family(architecture="GlmForCausalLM", qkv_bias=("attention_bias", True), fused_gate_up=True),
    "glm4": Family(
        architecture="Glm4ForCausalLM",
        qkv_bias=("attention_bias", True),
        fused_gate_up=True,
        norms=("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ),
}


def load_config(source: str, num_layers: int | None) -> dict[str, object]:
    """Return the config of "debug:<model_type>", of a config file or directory, or of a fixture's name."""
    config = _find_config(source)
    if config.get("model_type") not in FAMILIES:
        sys.exit(f"model_type {config.get('model_type')!r} cannot be written: known are {', '.join(FAMILIES)}")
    if num_layers is not None:
        config["num_hidden_layers"] = num_layers
        layer_types = config.get("layer_types")
        if isinstance(layer_types, list):
            config["layer_types"] = [layer_types[layer % len(layer_types)] for layer in range(num_layers)]
    return config


def _find_config(source: str) -> dict[str, object]:
    if source.startswith("debug:"):
        from openautoglm.families.debug import debug_config

        try:
            return {**debug_config(source.removeprefix("debug:")), "vocab_size": DEBUG_VOCAB_SIZE}
        except OpenAutoGLMError as error:
            sys.exit(str(error))
    path = Path(source)
    if path.exists():
        found: dict[str, object] = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        return found
    fixtures: dict[str, dict[str, dict[str, object]]] = json.loads(FIXTURES.read_text())
    for name, fixture in fixtures.items():
        if name.lower() == source.lower():
            return dict(fixture["config"])
    sys.exit(f"{source!r} is no file, no debug:<model_type> and no fixture; fixtures are {', '.join(fixtures)}")


def tensor_shapes(config: Mapping[str, object]) -> list[Shape]:
    """Return every tensor of the model, in the order in which it is written."""
    family = FAMILIES[str(config["model_type"])]
    hidden, vocabulary = _size(config, "hidden_size"), _size(config, "vocab_size")
    shapes = [_matrix("model.embed_tokens.weight", vocabulary, hidden)]
    for layer in range(_size(config, "num_hidden_layers")):
        shapes += _layer(f"model.layers.{layer}.", config, family)
    shapes.append(_norm("model.norm.weight", hidden))
    if not config.get("tie_word_embeddings", False):
        shapes.append(_matrix("lm_head.weight", vocabulary, hidden))
    return shapes


def _layer(prefix: str, config: Mapping[str, object], family: Family) -> list[Shape]:
    hidden, intermediate = _size(config, "hidden_size"), _size(config, "intermediate_size")
    num_heads = _size(config, "num_attention_heads")
    head_dim = _size(config, "head_dim") if config.get("head_dim") else hidden // num_heads
    query = num_heads * head_dim
    key = (_size(config, "num_key_value_heads") if config.get("num_key_value_heads") else num_heads) * head_dim
    attention = f"{prefix}self_attn."
    shapes: list[Shape] = []
    for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
        shapes += _linear(attention + name, rows, hidden, bias=_flag(config, family.qkv_bias))
    shapes += _linear(f"{attention}o_proj", hidden, query, bias=_flag(config, family.output_bias))
    if family.qk_norm:
        shapes += [_norm(f"{attention}{name}.weight", head_dim) for name in ("q_norm", "k_norm")]
    mlp_bias = _flag(config, family.mlp_bias)
    if family.fused_gate_up:
        shapes += _linear(f"{prefix}mlp.gate_up_proj", 2 * intermediate, hidden, bias=mlp_bias)
    else:
        shapes += _linear(f"{prefix}mlp.gate_proj", intermediate, hidden, bias=mlp_bias)
        shapes += _linear(f"{prefix}mlp.up_proj", intermediate, hidden, bias=mlp_bias)
    shapes += _linear(f"{prefix}mlp.down_proj", hidden, intermediate, bias=mlp_bias)
    return shapes + [_norm(f"{prefix}{name}.weight", hidden) for name in family.norms]


def _size(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        sys.exit(f"config: {key} must be a positive integer, got {value!r}")
    return value


def _flag(config: Mapping[str, object], flag: bool | tuple[str, bool]) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(*flag))


def _matrix(name: str, rows: int, columns: int) -> Shape:
    return Shape(name=name, shape=(rows, columns), kind=Kind.MATRIX)


def _norm(name: str, size: int) -> Shape:
    return Shape(name=name, shape=(size,), kind=Kind.NORM)


def _linear(base: str, rows: int, columns: int, *, bias: bool) -> list[Shape]:
    weight = _matrix(f"{base}.weight", rows, columns)
    return [weight, Shape(name=f"{base}.bias", shape=(rows,), kind=Kind.BIAS)] if bias else [weight]
