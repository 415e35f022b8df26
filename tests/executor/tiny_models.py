"""Tiny random checkpoints of real families, made with transformers, every parameter drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, read_config, weight_map
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.plan import Breakdown, Plan

NO_BREAKDOWN = Breakdown(
    layer_weight_bytes=0,
    head_weight_bytes=0,
    embedding_weight_bytes=0,
    norm_bytes=0,
    kv_bytes=0,
    workspace_bytes=0,
    runtime_bytes=0,
    headroom_bytes=0,
)


def make_reference(model_type: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Return a transformers model in fp32 with every norm, bias and matrix random: defaults would hide mistakes."""
    config = AutoConfig.for_model(**{**debug_config(model_type), **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 1.0 + 0.3 * noise if name.endswith("norm.weight") or "norm" in name else 0.3 * noise
        else:
            parameter.data = noise * (1.5 / parameter.shape[1] ** 0.5)
    return model


def save_checkpoint(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model as config.json and one safetensors file."""
    directory.mkdir(parents=True, exist_ok=True)
    tied = bool(model.config.tie_word_embeddings)
    tensors = {
        name: value.to(dtype).contiguous().clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return directory


def make_plan(
    formats: ModelFormats,
    *,
    num_threads: int = 2,
    num_blocks: int = 64,
    max_step_tokens: int = 128,
    max_step_rows: int = 16,
) -> Plan:
    """Return a plan with what a load reads; the rest is not looked at."""
    return Plan(
        model="tiny",
        family="test",
        formats=formats,
        num_parameters=0,
        num_active_parameters=0,
        context_tokens=256,
        max_context_tokens=256,
        concurrency=1,
        max_concurrency=1,
        num_blocks=num_blocks,
        max_step_tokens=max_step_tokens,
        max_step_rows=max_step_rows,
        num_threads=num_threads,
        budget_bytes=0,
        breakdown=NO_BREAKDOWN,
    )


def load_checkpoint(directory: Path, plan: Plan) -> NativeExecutor:
    """Load a checkpoint directory as `plan` says."""
    config = read_config(directory)
    spec = describe(config)
    with Checkpoint.open(directory) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        return load_model(checkpoint, spec, weight_map(spec, config, shapes), plan)
