"""The bf16 and quantised modes against an fp32 model of transformers whose weights are the dequantised ones.

What is left is the rounding of activations (bf16: 2^-9 of each value; int8: amax / 254 of a group of 128) and of the
KV cache, which a random model amplifies from layer to layer. Two kinds of bounds, as relative root mean square of the
logits of a position:
  whole   the worst of 80 positions, everything as it runs: 3 % for bf16, 10 % for int8 activations
  cache   the same with fp32 weights and a small cache: int8 rounds keys, values and queries by up to amax / 254 of a
          head, where bf16 activations have 2^-9 of each value: 8 %; fp8 rounds keys and values by up to 2^-4: 25 %
  exact   a second reference rounds the input of every product as the kernels do, and the cache is fp32: then equal but
          for the order of fp32 sums (1e-5), save where that order tips a value over the edge between two integers.
          Sequences are short, so that one tipped value spoils few positions: at least half must be exact.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openautoglm.native import _core
from openautoglm.spec.formats import ActivationScale, ModelFormats, NumberFormat, WeightFormat
from tests.parity.models import Runner, Tiny, load, make_tiny, relative_error, relative_errors, save_as

TOKENS = 80
BF16_BOUND = 0.03
ACTIVATION_BOUND = 0.1
INT8_CACHE_BOUND, FP8_CACHE_BOUND = 0.08, 0.25
EXACT = 1e-5
EXACT_SHARE = 0.5
NUM_SEQUENCES, SEQUENCE_TOKENS = 16, 4
GROUP = 128

MODELS = ("glm4", "llama", "qwen3")
QUANTISED = [
    (NumberFormat.INT8, 0),
    (NumberFormat.INT4, 32),
    (NumberFormat.INT4, 64),
    (NumberFormat.INT4, 128),
    (NumberFormat.NF4, 64),
]


def dequantised(matrix: torch.Tensor, weight_format: WeightFormat) -> torch.Tensor:
    """Return the values that the packed form of a matrix stands for."""
    packed = _core.pack(str(weight_format.number), weight_format.group, np.ascontiguousarray(matrix.numpy()))
    rows = np.arange(matrix.shape[0], dtype=np.int32)
    return torch.from_numpy(np.array(_core.gather_rows("scalar", packed, rows)))


def dequantise_model(model, formats):
    """Replace every matrix of a reference by its dequantised form; rows are quantised by themselves, so their order
    in the fused matrices does not matter.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            chosen = formats.embedding
        elif isinstance(module, torch.nn.Linear):
            chosen = formats.head if name == "lm_head" else formats.layers
        else:
            continue
        module.weight.data.copy_(dequantised(module.weight.data, chosen))


def round_tokens(values: torch.Tensor) -> torch.Tensor:
    """Round the last dimension to int8 with one scale, as the kernels do."""
    largest = values.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return torch.round(values * (127 / largest)) * (largest / 127)


def round_groups(values: torch.Tensor) -> torch.Tensor:
    """Round the last dimension to int8 with a scale per group of 128."""
    width = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -width % GROUP)).unflatten(-1, (-1, GROUP))
    return round_tokens(padded).flatten(-2)[..., :width]


def on_inputs(model, rounding):
    """Pass the input of every product of a reference through `rounding`."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))


def with_float_cache(number, **options):
    return replace(ModelFormats.for_quantisation(number, **options), kv=NumberFormat.F32)


def exact_share(tiny: Tiny, runner: Runner) -> float:
    """Return the share of positions of many short sequences whose logits equal the reference's."""
    errors = []
    for seed in range(NUM_SEQUENCES):
        tokens = tiny.tokens(SEQUENCE_TOKENS, seed)
        runner.position = 0
        errors.append(relative_errors(runner.feed(tokens), tiny.logits(tokens)))
    runner.executor.close()
    return float((np.concatenate(errors) < EXACT).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_source_type_loads_to_the_same_values(dtype, tmp_path):
    """What bf16 and fp16 both hold exactly is the same model in every type on disk."""
    tiny = make_tiny("glm", tmp_path / "bf16", dtype=torch.bfloat16)
    for parameter in tiny.model.parameters():
        parameter.data[parameter.data.abs() < 1e-3] = 0.0  # fp16 would round these
    save_as(tiny.model, dtype, tmp_path / "model")
    tokens = tiny.tokens(TOKENS)
    runner = load(tmp_path / "model", NumberFormat.F32)
    assert relative_error(runner.feed(tokens), tiny.logits(tokens)) < 2e-5
    runner.executor.close()


@pytest.mark.parametrize("model_type", MODELS)
def test_bf16(model_type, tmp_path):
    tiny = make_tiny(model_type, tmp_path / "model", dtype=torch.bfloat16)
    tokens = tiny.tokens(TOKENS)
    runner = load(tiny.directory, NumberFormat.BF16)
    assert relative_error(runner.feed(tokens), tiny.logits(tokens)) < BF16_BOUND
    runner.executor.close()


@pytest.mark.parametrize(("kv", "bound"), [(NumberFormat.INT8, INT8_CACHE_BOUND), (NumberFormat.FP8, FP8_CACHE_BOUND)])
@pytest.mark.parametrize("model_type", MODELS)
def test_small_caches(model_type, kv, bound, tmp_path):
    """The error is the format's: there, and bounded, whole or token by token."""
    tiny = make_tiny(model_type, tmp_path / "model")
    tokens = tiny.tokens(TOKENS)
    runner = load(tiny.directory, ModelFormats.for_quantisation(NumberFormat.F32, kv=kv))
    whole = runner.feed(tokens)
    assert 1e-4 < relative_error(whole, tiny.logits(tokens)) < bound
    runner.position = 0
    assert np.concatenate([runner.feed(tokens[i : i + 1]) for i in range(TOKENS)]).tobytes() == whole.tobytes()
    runner.executor.close()


@pytest.mark.parametrize("model_type", MODELS)
def test_bf16_is_exact_but_for_its_rounding(model_type, tmp_path):
    tiny = make_tiny(model_type, tmp_path / "model", dtype=torch.bfloat16)
    on_inputs(tiny.model, lambda values: values.to(torch.bfloat16).float())
    assert exact_share(tiny, load(tiny.directory, with_float_cache(NumberFormat.BF16))) >= EXACT_SHARE


@pytest.mark.parametrize(("number", "group"), QUANTISED, ids=lambda value: str(value))
@pytest.mark.parametrize("model_type", MODELS)
def test_quantised(model_type, number, group, tmp_path):
    tiny = make_tiny(model_type, tmp_path / "model")
    formats = ModelFormats.for_quantisation(number, group=group or None)
    dequantise_model(tiny.model, formats)
    tokens = tiny.tokens(TOKENS)
    runner = load(tiny.directory, formats)
    assert relative_error(runner.feed(tokens), tiny.logits(tokens)) < ACTIVATION_BOUND
    runner.executor.close()
    on_inputs(tiny.model, round_groups)
    exact = load(tiny.directory, with_float_cache(number, group=group or None))
    assert exact_share(tiny, exact) >= EXACT_SHARE


@pytest.mark.parametrize("tied", [False, True])
def test_activations_per_token(tied, tmp_path):
    """One scale per token; with tied embeddings head and table are one matrix in the head's format."""
    tiny = make_tiny("glm", tmp_path / "model", tie_word_embeddings=tied)
    formats = with_float_cache(NumberFormat.INT4, activations=ActivationScale.TOKEN)
    dequantise_model(tiny.model, formats)
    on_inputs(tiny.model, round_tokens)
    assert exact_share(tiny, load(tiny.directory, formats)) >= EXACT_SHARE


def test_the_two_granularities_differ(tmp_path):
    """Rounding per token where the kernels round per group would be noticed."""
    tiny = make_tiny("glm", tmp_path / "model")
    formats = with_float_cache(NumberFormat.INT8)
    dequantise_model(tiny.model, formats)
    on_inputs(tiny.model, round_tokens)
    assert exact_share(tiny, load(tiny.directory, formats)) == 0.0
