"""Tiny models with every weight random, their checkpoints, and the native executor over them.

Default initialisation hides mistakes (zero biases, norms of one), so every parameter is drawn anew. Sizes come from
the families' debug configs; sequences are longer than windows, KV blocks and attention partitions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.executor.protocol import StepBatch
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, read_config, weight_map
from openautoglm.memory.kv import kv_block_bytes
from openautoglm.memory.weights import num_active_parameters, num_parameters, weight_bytes
from openautoglm.memory.workspace import workspace_bytes
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.plan import BLOCK_TOKENS, Breakdown, Plan
from openautoglm.spec.weights import WeightMap
from openautoglm.units import MIB

torch.set_num_threads(1)  # tiny products: more threads only wait for each other

CONTEXT_TOKENS = 256
NUM_BLOCKS = 2 * CONTEXT_TOKENS // BLOCK_TOKENS
MAX_ROWS = 4


@dataclass(frozen=True)
class Tiny:
    """A model of transformers in fp32 and the directory that holds its checkpoint."""

    directory: Path
    model: PreTrainedModel
    vocab_size: int

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the reference logits of every position, [len(tokens), vocabulary]."""
        with torch.no_grad():
            return self.model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()

    def decode_logits(self, tokens: np.ndarray, num_prompt: int) -> np.ndarray:
        """Return the logits of transformers' own incremental decoding after a prompt, one row per later token."""
        ids = torch.from_numpy(tokens[None].astype(np.int64))
        rows = []
        with torch.no_grad():
            cache = self.model(ids[:, :num_prompt], use_cache=True).past_key_values
            for index in range(num_prompt, len(tokens)):
                output = self.model(ids[:, index : index + 1], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                rows.append(output.logits[0, 0].numpy())
        return np.stack(rows)

    def tokens(self, count: int, seed: int = 5) -> np.ndarray:
        """Return random tokens."""
        return np.random.default_rng(seed).integers(0, self.vocab_size, count).astype(np.int32)


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter: matrices keep the scale of what they multiply, norms and biases vary by a third."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            values = 0.3 * noise
        elif parameter.ndim == 1:
            values = 1 + 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            values = noise
        else:
            values = 1.3 * noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(values)


def make_tiny(model_type: str, directory: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Tiny:
    """Write a random checkpoint in `dtype` and return it with its fp32 reference, rounded to `dtype` too."""
    if model_type == "chatglm":
        return _make_chatglm(directory, dtype)
    config = debug_config(model_type) | changes
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    randomise(model, seed=len(model_type) + len(changes))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    save_as(model, dtype, directory)
    return Tiny(directory, model, int(str(config["vocab_size"])))


def save_as(model: PreTrainedModel, dtype: torch.dtype, directory: Path) -> None:
    """Write a checkpoint in `dtype`; a copy is converted, since conversion would round rotary tables for good."""
    copy.deepcopy(model).to(dtype).save_pretrained(directory)


def _make_chatglm(directory: Path, dtype: torch.dtype) -> Tiny:
    """Write a glm model under the names and keys of the legacy repositories."""
    modern = directory.with_name(directory.name + "-modern")
    rope = {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5}
    tiny = make_tiny("glm", modern, dtype=dtype, rope_parameters=rope)
    state = {name: tensor.to(dtype) for name, tensor in tiny.model.state_dict().items()}
    legacy = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(8),
    }
    for layer in range(3):
        old, new = f"transformer.encoder.layers.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{new}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            legacy[f"{old}self_attention.query_key_value.{kind}"] = torch.cat(parts)
        legacy[old + "self_attention.dense.weight"] = state[new + "self_attn.o_proj.weight"]
        legacy[old + "mlp.dense_h_to_4h.weight"] = state[new + "mlp.gate_up_proj.weight"]
        legacy[old + "mlp.dense_4h_to_h.weight"] = state[new + "mlp.down_proj.weight"]
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            legacy[old + norm] = state[new + norm]
    directory.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in legacy.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(debug_config("chatglm")))
    return Tiny(directory, tiny.model, tiny.vocab_size)


class Runner:
    """One sequence on a loaded executor; block tables count backwards so that block 0 is nothing special."""

    def __init__(self, executor: NativeExecutor) -> None:
        self.executor = executor
        self.position = 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Run one step over the next tokens and return the logits of each, [len(tokens), vocabulary]."""
        count = len(tokens)
        batch = StepBatch(
            tokens=np.ascontiguousarray(tokens, np.int32),
            positions=np.arange(self.position, self.position + count, dtype=np.int32),
            row_offsets=np.array([0, count], np.int32),
            block_tables=(np.arange(NUM_BLOCKS - 1, -1, -1, dtype=np.int32)[None],),
            logit_indices=np.arange(count, dtype=np.int32),
        )
        logits = self.executor.submit(batch).result().logits
        assert logits is not None
        self.position += count
        return logits


def make_plan(spec: ArchSpec, formats: ModelFormats, num_threads: int = 1) -> Plan:
    """Return a plan for two contexts, priced by the formulas that real plans use."""
    weights = weight_bytes(spec, formats)
    work = workspace_bytes(
        spec, formats, max_step_tokens=CONTEXT_TOKENS, max_step_rows=MAX_ROWS, num_threads=num_threads
    )
    breakdown = Breakdown(
        layer_weight_bytes=weights.layers,
        head_weight_bytes=weights.head,
        embedding_weight_bytes=weights.embedding,
        norm_bytes=weights.norms,
        kv_bytes=NUM_BLOCKS * kv_block_bytes(spec, formats.kv),
        workspace_bytes=work,
        runtime_bytes=128 * MIB,
        headroom_bytes=64 * MIB,
    )
    return Plan(
        model="tiny",
        family=spec.family,
        formats=formats,
        num_parameters=num_parameters(spec),
        num_active_parameters=num_active_parameters(spec),
        context_tokens=CONTEXT_TOKENS,
        max_context_tokens=CONTEXT_TOKENS,
        concurrency=2,
        max_concurrency=2,
        num_blocks=NUM_BLOCKS,
        max_step_tokens=CONTEXT_TOKENS,
        max_step_rows=MAX_ROWS,
        num_threads=num_threads,
        budget_bytes=breakdown.total_bytes,
        breakdown=breakdown,
    )


def load(
    directory: Path,
    formats: ModelFormats | NumberFormat,
    *,
    change_spec: Callable[[ArchSpec], ArchSpec] = lambda spec: spec,
    change_map: Callable[[WeightMap], WeightMap] = lambda bound: bound,
) -> Runner:
    """Load a checkpoint through the reader, the family and the loader, with changes for mutation tests."""
    if isinstance(formats, NumberFormat):
        formats = ModelFormats.for_quantisation(formats)
    config = read_config(directory)
    spec = change_spec(describe(config))
    with Checkpoint.open(directory) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        bound = change_map(weight_map(spec, config, shapes))
        return Runner(load_model(checkpoint, spec, bound, make_plan(spec, formats)))


def relative_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return for each position the root mean square of the difference over that of the centred reference."""
    difference = found.astype(np.float64) - expected
    spread = expected.astype(np.float64) - expected.mean(axis=-1, keepdims=True)
    errors: np.ndarray = np.sqrt((difference**2).mean(axis=-1) / (spread**2).mean(axis=-1))
    return errors


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the error of the worst position."""
    return float(relative_errors(found, expected).max())
