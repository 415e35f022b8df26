"""Bytes of training: parameters, gradients, optimizer states, activations, the loss's logits, and their peak.

Sources: states per parameter: Rajbhandari et al. 2020 (ZeRO), section 3: 2 + 2 + 12 bytes with Adam in mixed precision,
and what each stage divides by the number of devices. Adafactor: Shazeer and Stern 2018, a row and a column of second
moments per matrix. 8-bit states: Dettmers et al. 2022, a byte per state and an fp32 scale per block of 256. LoRA: Hu et
al. 2021, rank * (inputs + outputs) per matrix, kept in fp32 as PEFT does. QLoRA: Dettmers et al. 2023, nf4 in blocks of
64 whose scales are quantised in turn. Activations: `memory.activations`.

A step has three moments that may be its peak; states are held through all of them:

    the loss       all activations, and logits in four forms
    backward       all activations and the head's gradient; at its other end all gradients; a layer's gradients on top
    the update     all gradients, copies of the largest tensor, and the logits that the step's output still holds

Measured with torch: tests/memory/test_training.py. ZeRO, offload and 8-bit states are arithmetic that was not measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from openautoglm.errors import ConfigError
from openautoglm.memory.activations import (
    LORA_TARGETS,
    ActivationShape,
    activation_bytes,
    layer_tensors,
    loss_bytes,
    working_bytes,
)
from openautoglm.memory.shapes import embedding_matrix, layer_vector_elements, norm_elements
from openautoglm.memory.weights import num_parameters
from openautoglm.spec.arch import ArchSpec, AttentionSpec

_FLOAT = 4
_BLOCK_8BIT = 256
_MIN_8BIT_ELEMENTS = 4096  # bitsandbytes keeps the states of smaller tensors in fp32
_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # codes, 8-bit scales of blocks, fp32 scales of 256 of those
_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's reduce_bucket_size


class TrainingMethod(StrEnum):
    """What is trained: every parameter, or adapters beside frozen ones (in 16 bits, or quantised to nf4)."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Optimizer(StrEnum):
    """The optimizer; sgd has a momentum, adafactor none."""

    ADAMW = "adamw"
    SGD = "sgd"
    ADAFACTOR = "adafactor"
    ADAMW8BIT = "adamw8bit"


class Precision(StrEnum):
    """Mixed: bf16 with fp32 master weights and states; bf16 or f32: parameters, gradients and states alike."""

    MIXED = "mixed"
    BF16 = "bf16"
    F32 = "f32"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """A step: `batch_size` sequences of `seq_tokens` on each of `num_devices`.

    `zero` is the stage: 1 divides optimizer states, 2 gradients too, 3 parameters too. `offload` keeps optimizer states
    (at stage 3 parameters too) in host memory. `gradient_item_bytes` None: as the parameters.
    """

    method: TrainingMethod
    batch_size: int
    seq_tokens: int
    optimizer: Optimizer = Optimizer.ADAMW
    precision: Precision = Precision.MIXED
    gradient_item_bytes: int | None = None
    checkpointing: bool = False
    zero: int = 0
    num_devices: int = 1
    offload: bool = False
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = LORA_TARGETS

    @property
    def item_bytes(self) -> int:
        """Bytes of a parameter, and of an activation."""
        return _FLOAT if self.precision is Precision.F32 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBytes:
    """Bytes on each device; `host_bytes` are what offload keeps in host memory for it.

    `loss_bytes` is the most that logits and their gradients take, `working_bytes` a layer's own gradients,
    `shared_bytes` what ZeRO holds to exchange: buckets, and at stage 3 layers gathered whole. `peak_bytes` is less than
    the sum, as not all of it is there at once.
    """

    num_parameters: int
    num_trainable: int
    parameter_bytes: int
    gradient_bytes: int
    master_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    loss_bytes: int
    working_bytes: int
    shared_bytes: int
    host_bytes: int
    peak_bytes: int


def _check_setup(spec: ArchSpec, setup: TrainingSetup) -> None:
    """Raise `ConfigError` for a setup that means nothing."""
    for name, value in (
        ("batch", setup.batch_size),
        ("seq", setup.seq_tokens),
        ("number of devices", setup.num_devices),
        ("LoRA rank", setup.lora_rank),
    ):
        if value < 1:
            raise ConfigError(f"the {name} must be at least 1, got {value}")
    if setup.seq_tokens > spec.max_positions:
        raise ConfigError(
            f"sequences of {setup.seq_tokens:,} tokens are beyond the {spec.max_positions:,} positions of this model"
        )
    if not 0 <= setup.zero <= 3:
        raise ConfigError(f"ZeRO has the stages 0 to 3, got {setup.zero}")
    if setup.zero and setup.num_devices == 1:
        raise ConfigError(f"ZeRO stage {setup.zero} divides among devices: say how many there are (--num-devices)")
    unknown = [target for target in setup.lora_targets if target not in LORA_TARGETS]
    if unknown or not setup.lora_targets:
        raise ConfigError(f"LoRA targets are some of {', '.join(LORA_TARGETS)}; got {', '.join(unknown) or 'none'}")


def training_bytes(spec: ArchSpec, setup: TrainingSetup) -> TrainingBytes:
    """Return what a training step takes on each device. Raises `ConfigError` for a setup that means nothing."""
    _check_setup(spec, setup)
    full = setup.method is TrainingMethod.FULL
    tensors = _trainable(spec, setup)
    trainable = sum(rows * columns * count for (rows, columns), count in tensors.items())
    total = num_parameters(spec)
    # Adapters stay in fp32 whatever the frozen weights are in.
    item = setup.item_bytes if full else _FLOAT
    gradient_item = setup.gradient_item_bytes or item
    parameters = total * setup.item_bytes if full else _frozen_bytes(spec, setup, total) + trainable * item
    gradients = trainable * gradient_item
    master = trainable * _FLOAT if full and setup.precision is Precision.MIXED else 0
    states = _state_bytes(tensors, setup.optimizer, item if setup.precision is not Precision.MIXED else _FLOAT)
    shape = ActivationShape(
        num_tokens=setup.batch_size * setup.seq_tokens,
        seq_tokens=setup.seq_tokens,
        item_bytes=setup.item_bytes,
        trains_weights=full,
        lora_rank=0 if full else setup.lora_rank,
        lora_targets=() if full else setup.lora_targets,
        checkpointing=setup.checkpointing,
        masked=any(isinstance(layer.mixer, AttentionSpec) and layer.mixer.window for layer in spec.layers),
    )
    shards, stage = setup.num_devices, setup.zero
    largest_bytes = max(rows * columns for rows, columns in tensors) * _FLOAT
    shared = _shared_bytes(spec, setup, trainable, gradient_item)
    parameters, gradients = _part(parameters, stage >= 3, shards), _part(gradients, stage >= 2, shards)
    master, states = _part(master, stage >= 1, shards), _part(states, stage >= 1, shards)
    host = (master + states + (parameters if stage >= 3 else 0)) if setup.offload else 0
    activations, loss, working = activation_bytes(spec, shape), loss_bytes(spec, shape), working_bytes(spec, shape)
    logits = shape.num_tokens * spec.vocab_size * setup.item_bytes
    head = embedding_matrix(spec).num_parameters * gradient_item if full else 0
    dynamic = max(
        activations + loss,
        activations + 2 * logits + min(head, gradients) + working,
        gradients + logits + working,
        gradients + logits + 2 * largest_bytes,
    )
    return TrainingBytes(
        num_parameters=total + (0 if full else trainable),
        num_trainable=trainable,
        parameter_bytes=parameters,
        gradient_bytes=gradients,
        master_bytes=master,
        optimizer_bytes=states,
        activation_bytes=activations,
        loss_bytes=loss,
        working_bytes=working,
        shared_bytes=shared,
        host_bytes=host,
        peak_bytes=parameters + master + states - host + shared + dynamic,
    )


def _part(num_bytes: int, divided: bool, shards: int) -> int:
    return -(-num_bytes // shards) if divided else num_bytes


def _trainable(spec: ArchSpec, setup: TrainingSetup) -> Counter[tuple[int, int]]:
    """Return the shapes of trained tensors and how many there are of each; vectors are [1, n]."""
    tensors: Counter[tuple[int, int]] = Counter()
    for layer, repeats in Counter(spec.layers).items():
        for name, outputs, inputs, count in layer_tensors(layer, spec.hidden_size):
            if setup.method is TrainingMethod.FULL:
                tensors[outputs, inputs] += repeats * count
            elif name in setup.lora_targets:
                tensors[setup.lora_rank, inputs] += repeats * count
                tensors[outputs, setup.lora_rank] += repeats * count
        if setup.method is TrainingMethod.FULL:
            # Norms and biases, whose number is of no consequence; parameters that no field explains likewise.
            tensors[1, layer_vector_elements(layer, spec.hidden_size) + layer.extra_parameters] += repeats
    if setup.method is TrainingMethod.FULL:
        tensors[spec.vocab_size, spec.hidden_size] += 1 if spec.tied_embeddings else 2
        tensors[1, norm_elements(spec.final_norm, spec.hidden_size) + (spec.vocab_size if spec.head_bias else 0)] += 1
        rest = spec.extra_parameters + sum(tower.num_parameters for tower in spec.towers)
        if rest:
            tensors[1, rest] += 1
    if not tensors:
        raise ConfigError(f"this model has no matrix among the LoRA targets {', '.join(setup.lora_targets)}")
    return tensors


def _frozen_bytes(spec: ArchSpec, setup: TrainingSetup, total: int) -> int:
    if setup.method is TrainingMethod.LORA:
        return total * setup.item_bytes
    quantised = sum(
        repeats * count * outputs * inputs
        for layer, repeats in Counter(spec.layers).items()
        for _, outputs, inputs, count in layer_tensors(layer, spec.hidden_size)
    )
    return int(quantised * _NF4_BITS / 8) + (total - quantised) * setup.item_bytes


def _state_bytes(tensors: Counter[tuple[int, int]], optimizer: Optimizer, item_bytes: int) -> int:
    return sum(count * _tensor_state_bytes(*shape, optimizer, item_bytes) for shape, count in tensors.items())


def _tensor_state_bytes(rows: int, columns: int, optimizer: Optimizer, item_bytes: int) -> int:
    elements = rows * columns
    match optimizer:
        case Optimizer.ADAMW:
            return 2 * elements * item_bytes
        case Optimizer.SGD:
            return elements * item_bytes
        case Optimizer.ADAFACTOR:
            return (rows + columns if rows > 1 else elements) * item_bytes
        case Optimizer.ADAMW8BIT:
            if elements < _MIN_8BIT_ELEMENTS:
                return 2 * elements * _FLOAT
            return 2 * (elements + -(-elements // _BLOCK_8BIT) * _FLOAT)


def _shared_bytes(spec: ArchSpec, setup: TrainingSetup, trainable: int, gradient_item_bytes: int) -> int:
    """Return what ZeRO holds to exchange: a bucket of gradients, and at stage 3 two layers whole."""
    if setup.zero == 0:
        return 0
    shared = min(trainable, _BUCKET_ELEMENTS) * gradient_item_bytes
    if setup.zero == 3:
        layers = [
            sum(outputs * inputs * count for _, outputs, inputs, count in layer_tensors(layer, spec.hidden_size))
            for layer in dict.fromkeys(spec.layers)
        ]
        shared += max(2 * max(layers), embedding_matrix(spec).num_parameters) * setup.item_bytes
    return shared
