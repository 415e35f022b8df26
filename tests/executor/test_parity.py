"""Against transformers: tiny random models in fp32, whole prompts and token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from openautoglm.native import _core
from openautoglm.spec.formats import ActivationScale, ModelFormats, NumberFormat
from tests.executor.runner import Runner
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

CASES = {
    "glm": ("glm", {}),
    "glm-edge": ("glm", {"attention_bias": False, "tie_word_embeddings": True}),
    "glm4": ("glm4", {}),
    "glm4-no-bias": ("glm4", {"attention_bias": False}),
    "llama": ("llama", {}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "llama-one-head": ("llama", {"num_key_value_heads": 1, "head_dim": 48}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-wide": ("qwen3", {"head_dim": 80, "num_key_value_heads": 4}),
}
F32 = ModelFormats.for_quantisation(NumberFormat.F32)


def tokens_of(length: int, vocab_size: int = 160, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


@pytest.mark.parametrize("name", CASES)
def test_f32_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[name]
    reference = make_reference(model_type, **overrides)
    tokens = tokens_of(75)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    executor = load_checkpoint(save_checkpoint(reference, tmp_path / "model"), make_plan(F32))
    runner = Runner(executor=executor)
    spread = expected.std()
    prefill = runner.run(tokens, [7, 3, 12, 1, 9])
    assert np.abs(prefill - expected).max() < 1e-4 * spread
    decoded = runner.run(tokens, [20, 21, 22, 23, 24], chunk=1)
    assert np.abs(decoded - expected).max() < 1e-4 * spread
    executor.close()


def round_weights(model: PreTrainedModel, formats: ModelFormats) -> None:
    """Replace every matrix by what its packed form holds, so that only activations are left to differ."""
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        chosen = formats.head if "lm_head" in name else formats.embedding if "embed" in name else formats.layers
        packed = _core.pack(str(chosen.number), chosen.group, parameter.detach().numpy())
        rows = np.arange(parameter.shape[0], dtype=np.int32)
        parameter.data = torch.from_numpy(_core.gather_rows("scalar", packed, rows))


@pytest.mark.parametrize("activations", ["group", "token"])
@pytest.mark.parametrize("quant", ["bf16", "int8", "int4", "nf4"])
def test_other_formats_stay_near_their_own_weights(quant: str, activations: str, tmp_path: Path) -> None:
    formats = ModelFormats.for_quantisation(
        NumberFormat(quant), group=32 if "4" in quant else None, activations=ActivationScale(activations)
    )
    reference = make_reference("glm4")
    directory = save_checkpoint(reference, tmp_path / "model")
    round_weights(reference, formats)
    tokens = tokens_of(40)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    executor = load_checkpoint(directory, make_plan(formats))
    logits = Runner(executor=executor).run(tokens, [0, 1, 2])
    signal_to_noise_db = 10 * np.log10((expected**2).sum() / ((logits - expected) ** 2).sum())
    assert signal_to_noise_db > (30.0 if quant == "bf16" else 20.0)
    executor.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_load_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    reference = make_reference("glm4")
    directory = save_checkpoint(reference, tmp_path / "model", dtype)
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(dtype).float()
    tokens = tokens_of(20)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    executor = load_checkpoint(directory, make_plan(F32))
    assert np.abs(Runner(executor=executor).run(tokens, [0, 1]) - expected).max() < 1e-4 * expected.std()
    executor.close()
