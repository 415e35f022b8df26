"""Estimates of training against measured steps of tiny models, and against sums by hand where none can be measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from openautoglm.cli.plan import plan_command
from openautoglm.errors import ConfigError
from openautoglm.families.debug import debug_config
from openautoglm.families.published import published_configs
from openautoglm.families.registry import describe
from openautoglm.memory.training import Optimizer, Precision, TrainingMethod, TrainingSetup, training_bytes
from tests.memory.training_runs import LiveBytes, add_adapters, make_model, saved_for_backward

SEQ = 64
DTYPES = {Precision.F32: torch.float32, Precision.BF16: torch.bfloat16}
FULL = TrainingSetup(method=TrainingMethod.FULL, batch_size=4, seq_tokens=SEQ, precision=Precision.F32)
TARGETS = ("q", "v", "o", "down")  # which all families have as a module of their own
LORA = replace(FULL, method=TrainingMethod.LORA, lora_rank=8, lora_targets=TARGETS)
GLM_9B = describe(published_configs()["GLM-4-9B-0414"])


def prepared(model_type: str, setup: TrainingSetup, **overrides: object):
    """Return a model ready to train as `setup` says, its description, and a batch."""
    model = make_model(model_type, DTYPES[setup.precision], **overrides)
    if setup.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    spec = describe(model.config.to_dict())
    if setup.method is TrainingMethod.LORA:
        add_adapters(model, setup.lora_targets, setup.lora_rank)
        if setup.checkpointing:
            model.enable_input_require_grads()
    ids = torch.randint(0, 150, (setup.batch_size, setup.seq_tokens))
    return model, spec, ids


def optimizer_of(name: Optimizer, parameters):
    match name:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(parameters, foreach=False)
        case Optimizer.SGD:
            return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=False)
        case _:
            return torch.optim.Adafactor(parameters, foreach=False)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all states but the step counters."""
    values = (value for state in optimizer.state.values() for name, value in state.items() if name != "step")
    return sum(value.numel() * value.element_size() for value in values if torch.is_tensor(value))


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "glm", "glm4"])
@pytest.mark.parametrize("setup", [FULL, LORA], ids=lambda setup: setup.method)
def test_activations_are_what_autograd_keeps(model_type: str, precision: Precision, setup: TrainingSetup):
    setup = replace(setup, precision=precision)
    model, spec, ids = prepared(model_type, setup)
    with saved_for_backward(model) as saved:
        model(input_ids=ids, labels=ids)
    # The log-softmax is kept too; the estimate counts it to the loss.
    measured = sum(saved.values()) - ids.numel() * spec.vocab_size * 4
    estimate = training_bytes(spec, setup).activation_bytes
    # The first layer of a frozen model reads embeddings that need no gradient, so that some of it is not kept.
    slack = 0.0 if setup.method is TrainingMethod.FULL else 0.12
    assert measured <= estimate + 64
    assert estimate <= (1.002 + slack) * measured


@pytest.mark.parametrize("setup", [FULL, LORA], ids=lambda setup: setup.method)
def test_checkpointing_keeps_the_inputs_of_layers(setup: TrainingSetup):
    model, spec, ids = prepared("llama", replace(setup, checkpointing=True))
    with saved_for_backward(model) as saved:
        model(input_ids=ids, labels=ids)
    measured = sum(saved.values()) - ids.numel() * spec.vocab_size * 4
    estimate = training_bytes(spec, replace(setup, checkpointing=True)).activation_bytes
    assert measured <= estimate <= 1.05 * measured
    assert estimate < 0.4 * training_bytes(spec, setup).activation_bytes


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW, Optimizer.SGD, Optimizer.ADAFACTOR])
@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
@pytest.mark.parametrize("setup", [FULL, LORA], ids=lambda setup: setup.method)
def test_states_are_what_torch_holds(optimizer: Optimizer, precision: Precision, setup: TrainingSetup):
    setup = replace(setup, optimizer=optimizer, precision=precision)
    model, spec, ids = prepared("llama", setup)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch_optimizer = optimizer_of(optimizer, trained)
    model(input_ids=ids, labels=ids).loss.backward()
    torch_optimizer.step()
    estimate = training_bytes(spec, setup)
    assert estimate.num_trainable == sum(parameter.numel() for parameter in trained)
    assert estimate.parameter_bytes == bytes_of(model.parameters())
    assert estimate.gradient_bytes == bytes_of(parameter.grad for parameter in trained)
    assert estimate.optimizer_bytes == pytest.approx(state_bytes(torch_optimizer), rel=0.001)


@pytest.mark.parametrize(
    ("model_type", "setup", "vocab_size"),
    [
        ("llama", FULL, 1000),
        ("llama", replace(FULL, checkpointing=True), 1000),
        ("llama", replace(FULL, precision=Precision.BF16, batch_size=2), 1000),
        ("llama", replace(FULL, batch_size=1), 4000),
        ("glm4", FULL, 400),
        ("qwen3", replace(FULL, optimizer=Optimizer.SGD, batch_size=8), 400),
        ("llama", LORA, 1000),
        ("glm4", replace(LORA, precision=Precision.BF16), 1000),
        ("llama", replace(LORA, checkpointing=True), 400),
    ],
    ids=str,
)
def test_the_peak_is_near_and_not_below(model_type: str, setup: TrainingSetup, vocab_size: int):
    model, spec, ids = prepared(model_type, setup, vocab_size=vocab_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(setup.optimizer, trained)
    live = LiveBytes(known=tuple(model.parameters()))
    with live:
        for _ in range(2):
            outputs = model(input_ids=ids, labels=ids)
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    estimate = training_bytes(spec, setup).peak_bytes
    assert live.peak <= estimate + 1024  # step counters and other scalars
    assert estimate <= 1.25 * live.peak


def test_mixed_precision_is_sixteen_bytes_a_parameter():
    """The ZeRO paper's figure, on its own model's terms: 2 + 2 + 12."""
    estimate = training_bytes(GLM_9B, TrainingSetup(method=TrainingMethod.FULL, batch_size=1, seq_tokens=128))
    states = estimate.parameter_bytes + estimate.gradient_bytes + estimate.master_bytes + estimate.optimizer_bytes
    assert states == 16 * estimate.num_parameters


def test_zero_divides_stage_by_stage():
    base = TrainingSetup(method=TrainingMethod.FULL, batch_size=1, seq_tokens=128, num_devices=8)
    none, one, two, three = (training_bytes(GLM_9B, replace(base, zero=stage)) for stage in range(4))
    eighth = pytest.approx
    assert one.optimizer_bytes == eighth(none.optimizer_bytes / 8, abs=1)
    assert one.master_bytes == eighth(none.master_bytes / 8, abs=1)
    assert one.gradient_bytes == none.gradient_bytes
    assert two.gradient_bytes == eighth(none.gradient_bytes / 8, abs=1)
    assert two.parameter_bytes == none.parameter_bytes
    assert three.parameter_bytes == eighth(none.parameter_bytes / 8, abs=1)
    assert none.peak_bytes > one.peak_bytes > two.peak_bytes > three.peak_bytes
    assert none.shared_bytes == 0 < one.shared_bytes < three.shared_bytes


def test_offload_moves_states_to_the_host():
    base = TrainingSetup(method=TrainingMethod.FULL, batch_size=1, seq_tokens=128)
    here, there = training_bytes(GLM_9B, base), training_bytes(GLM_9B, replace(base, offload=True))
    assert here.host_bytes == 0
    assert there.host_bytes == here.optimizer_bytes + here.master_bytes == 12 * here.num_parameters
    assert there.peak_bytes == here.peak_bytes - there.host_bytes


def test_qlora_by_hand():
    """nf4 takes 4 bits and 8 + 32/256 bits a block of 64; tables and norms stay in 16 bits."""
    setup = TrainingSetup(method=TrainingMethod.QLORA, batch_size=1, seq_tokens=128, lora_rank=16, lora_targets=("q",))
    matrices = 40 * (4096 * (4096 + 2 * 256) + 4096 * 4096 + 3 * 4096 * 13696)
    others = 9_400_279_040 - matrices
    adapters = 40 * 16 * (4096 + 4096)
    estimate = training_bytes(GLM_9B, setup)
    assert estimate.num_trainable == adapters
    expected = matrices * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * others + 4 * adapters
    assert estimate.parameter_bytes == pytest.approx(expected, rel=1e-4)
    assert estimate.optimizer_bytes == 8 * adapters


def test_eight_bit_states_by_hand():
    base = TrainingSetup(method=TrainingMethod.LORA, batch_size=1, seq_tokens=64, lora_rank=16, lora_targets=("up",))
    spec = describe(
        {**debug_config("llama"), "hidden_size": 512, "intermediate_size": 1000, "max_position_embeddings": 64}
    )
    estimate = training_bytes(spec, replace(base, optimizer=Optimizer.ADAMW8BIT))
    small, large = 16 * 512, 1000 * 16  # both above 4096 elements; blocks of 256, the last one short
    assert estimate.optimizer_bytes == 3 * 2 * (small + 32 * 4 + large + 63 * 4)
    tiny = training_bytes(spec, replace(base, optimizer=Optimizer.ADAMW8BIT, lora_rank=4))
    assert tiny.optimizer_bytes == 3 * 2 * 4 * (4 * 512 + 1000 * 4)  # below that they stay fp32


@pytest.mark.parametrize("name", published_configs())
@pytest.mark.parametrize("method", TrainingMethod)
def test_every_published_shape_has_an_estimate(name: str, method: TrainingMethod):
    spec = describe(published_configs()[name])
    setup = TrainingSetup(method=method, batch_size=1, seq_tokens=512)
    plain, checkpointed = (training_bytes(spec, replace(setup, checkpointing=again)) for again in (False, True))
    assert plain.peak_bytes > plain.parameter_bytes + plain.optimizer_bytes
    assert checkpointed.activation_bytes < plain.activation_bytes
    assert checkpointed.peak_bytes <= plain.peak_bytes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero": 2}, "how many there are"),
        ({"zero": 4, "num_devices": 2}, "0 to 3"),
        ({"seq_tokens": 1 << 20}, "positions"),
        ({"batch_size": 0}, "batch"),
        ({"lora_targets": ("q", "x")}, "got x"),
        ({"lora_targets": ()}, "got none"),
    ],
)
def test_setups_that_mean_nothing(changes: dict[str, object], words: str):
    base = TrainingSetup(method=TrainingMethod.LORA, batch_size=1, seq_tokens=128)
    with pytest.raises(ConfigError, match=words):
        training_bytes(GLM_9B, replace(base, **changes))


def plan(*arguments: str):
    return CliRunner().invoke(plan_command, list(arguments))


def test_the_command_prints_parts_and_devices():
    result = plan("demo", "--train", "lora", "--batch", "2", "--seq", "256", "--device", "8GiB", "--device", "64MiB")
    assert result.exit_code == 0, result.output
    for words in ("optimizer states", "activations", "predicted peak", "8.00 GiB: fits", "64.0 MiB: does not fit"):
        assert words in result.output
    arguments = (
        "demo",
        "--train",
        "full",
        "--zero",
        "2",
        "--num-devices",
        "4",
        "--precision",
        "f32",
        "--gradients",
        "f32",
    )
    answer = json.loads(plan(*arguments, "--optimizer", "adafactor", "--checkpointing", "--offload", "--json").output)
    assert answer["setup"]["zero"] == 2
    assert answer["setup"]["checkpointing"] is True
    assert answer["bytes"]["host_bytes"] == answer["bytes"]["optimizer_bytes"] + answer["bytes"]["master_bytes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--batch", "2"], "--batch mean nothing without --train"),
        (["demo", "--train", "full", "--lora-rank", "4"], "use --train lora"),
        (["demo", "--train", "full", "--context", "64"], "mean nothing with --train"),
        (["demo", "--train", "lora", "--lora-targets", "q,z"], "got z"),
        (["demo", "--train", "full", "--server"], "--server means nothing"),
        (["demo", "--train", "full", "--place", "layers.1=disk"], "mean nothing with --train"),
        (["--table", "--train", "full"], "leave MODEL and --train out"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments: list[str], words: str):
    result = plan(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
