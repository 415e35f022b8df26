"""Why activations are scaled per token and group of 128: outlier channels.

The demo model gets outlier channels without changing its function: some entries of each norm weight are multiplied,
and the columns of the matrices that read them divided, by the same power of two.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from openautoglm.demo import checkpoint_directory
from openautoglm.llm import LLM
from openautoglm.quality.likelihood import bits_per_byte, mean_divergence

TEXT = '''def area(shape):
    """Return the area of a shape."""
    if shape is None:
        raise ValueError("shape must not be None")
    return shape.width * shape.height
'''
OUTLIER_CHANNELS = (5, 40, 77)
FACTOR = 64.0
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_up_proj",),
}


@pytest.fixture(scope="module")
def outlier_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = checkpoint_directory(), tmp_path_factory.mktemp("outliers")
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja"}:
            shutil.copy(file, target / file.name)
    tensors = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    for name, tensor in tensors.items():
        for norm, readers in READERS.items():
            if name.endswith(f"{norm}.weight") and ".layers." in name:
                tensor[list(OUTLIER_CHANNELS)] *= FACTOR
                prefix = name.removesuffix(f"{norm}.weight")
                for reader in readers:
                    tensors[f"{prefix}{reader}.weight"][:, list(OUTLIER_CHANNELS)] /= FACTOR
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def divergence(reference: LLM, directory: Path, activations: str) -> float:
    with LLM(str(directory), quant="int8", activations=activations, context=512, concurrency=1) as candidate:
        tokens = candidate.tokenizer.encode(TEXT)
        return mean_divergence(reference.executor, candidate.executor, tokens)


def test_group_scales_survive_outlier_channels(outlier_checkpoint: Path):
    with LLM(str(outlier_checkpoint), quant="f32", context=512, concurrency=1) as reference:
        per_group = divergence(reference, outlier_checkpoint, "group")
        per_token = divergence(reference, outlier_checkpoint, "token")
    assert per_group < 0.05
    assert per_token > 3 * per_group


def test_outliers_do_not_change_the_reference(outlier_checkpoint: Path):
    with (
        LLM(str(outlier_checkpoint), quant="f32", context=512, concurrency=1) as changed,
        LLM(str(checkpoint_directory()), quant="f32", context=512, concurrency=1) as original,
    ):
        tokens = original.tokenizer.encode(TEXT)
        assert mean_divergence(original.executor, changed.executor, tokens) < 1e-6


@pytest.mark.parametrize(("quant", "bound"), [("bf16", 0.002), ("int8", 0.02), ("int4", 0.2), ("nf4", 0.2)])
def test_formats_stay_close_to_the_reference(quant: str, bound: float):
    directory = str(checkpoint_directory())
    with (
        LLM(directory, quant="f32", context=512, concurrency=1) as reference,
        LLM(directory, quant=quant, context=512, concurrency=1) as candidate,
    ):
        tokens = reference.tokenizer.encode(TEXT)
        num_bytes = len(TEXT.encode())
        assert mean_divergence(reference.executor, candidate.executor, tokens) < bound
        exact = bits_per_byte(reference.executor, tokens, num_bytes)
        assert abs(bits_per_byte(candidate.executor, tokens, num_bytes) - exact) < 0.1 * exact
