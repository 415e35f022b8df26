"""`openautoglm plan --train`: what training will take, before anything is loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from openautoglm.errors import ConfigError
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode

if TYPE_CHECKING:
    from openautoglm.memory.training import TrainingBytes, TrainingSetup

_OPTIONS = (
    click.option("--train", type=click.Choice(["full", "lora", "qlora"]), help="Plan training instead of inference."),
    click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Training: sequences per step and device."),
    click.option("--seq", type=click.IntRange(min=1), metavar="TOKENS", help="Training: tokens of a sequence."),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "sgd", "adafactor", "adamw8bit"]),
        help="Training: adamw unless said otherwise; sgd has a momentum.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["mixed", "bf16", "f32"]),
        help="Training: mixed is bf16 with fp32 master weights and states (the default).",
    ),
    click.option("--gradients", type=click.Choice(["bf16", "f32"]), help="Training: gradients, if not as parameters."),
    click.option("--checkpointing", is_flag=True, help="Training: keep layers' inputs and compute them again."),
    click.option("--zero", type=click.IntRange(0, 3), metavar="STAGE", help="Training: ZeRO stage, 0 to 3."),
    click.option(
        "--num-devices", type=click.IntRange(min=1), metavar="N", help="Training: devices that ZeRO divides by."
    ),
    click.option("--lora-rank", type=click.IntRange(min=1), metavar="N", help="Training: rank of adapters (16)."),
    click.option("--lora-targets", metavar="NAMES", help="Training: q,k,v,o,gate,up,down or some of them (all)."),
)
_NAMES = (
    "train", "batch", "seq", "optimizer", "precision", "gradients", "checkpointing", "zero", "num_devices",
    "lora_rank", "lora_targets",
)  # fmt: skip


def training_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command and pass what was given as `training`: a dictionary, empty without any."""

    @functools.wraps(command)
    def with_training(*args: object, **kwargs: object) -> object:
        given = {name: kwargs.pop(name) for name in _NAMES}
        training = {name: value for name, value in given.items() if value not in (None, False)}
        return command(*args, training=training, **kwargs)

    for option in reversed(_OPTIONS):
        with_training = option(with_training)
    return with_training


def show_training(
    model: str, training: dict[str, object], goal: Goal, devices_bytes: Sequence[int], *, as_json: bool
) -> None:
    """Print what a training step takes on each device, and whether it fits devices of these sizes.

    The goal's offload, which is one option for both, means the host here: optimizer states, with ZeRO 3 parameters too.
    """
    from openautoglm.checkpoint.hub import parse_reference, resolve_config
    from openautoglm.families.registry import describe
    from openautoglm.memory.training import training_bytes
    from openautoglm.planner.explain import SCHEMA_VERSION

    offload, goal = goal.offload is OffloadMode.DISK, replace(goal, offload=OffloadMode.AUTO)
    if goal != Goal():
        raise ConfigError(
            "options of inference (--memory, --context, --quant and so on) mean nothing with --train: use --batch, "
            "--seq and --device"
        )
    if "train" not in training:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in training)
        raise ConfigError(f"{names} mean nothing without --train: add --train full, lora or qlora")
    spec = describe(resolve_config(model)[0])
    setup = _setup(training, spec.max_positions, offload=offload)
    found = training_bytes(spec, setup)
    fits = {size: found.peak_bytes <= size for size in devices_bytes}
    if as_json:
        answer: dict[str, object] = {"schema_version": SCHEMA_VERSION, "model": str(parse_reference(model))}
        answer |= {"setup": asdict(setup), "bytes": asdict(found)}
        answer["devices"] = [{"device_bytes": size, "fits": fit} for size, fit in fits.items()]
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(_table(model, setup, found, fits))


def _setup(training: dict[str, object], max_positions: int, *, offload: bool) -> TrainingSetup:
    from openautoglm.memory.activations import LORA_TARGETS
    from openautoglm.memory.training import Optimizer, Precision, TrainingMethod, TrainingSetup

    method = TrainingMethod(str(training["train"]))
    if method is TrainingMethod.FULL and training.keys() & {"lora_rank", "lora_targets"}:
        raise ConfigError("--lora-rank and --lora-targets mean nothing with --train full: use --train lora or qlora")
    targets = training.get("lora_targets")
    gradients = training.get("gradients")
    return TrainingSetup(
        method=method,
        batch_size=int(str(training.get("batch", 1))),
        seq_tokens=int(str(training.get("seq", min(2048, max_positions)))),
        optimizer=Optimizer(str(training.get("optimizer", "adamw"))),
        precision=Precision(str(training.get("precision", "mixed"))),
        gradient_item_bytes=None if gradients is None else 4 if gradients == "f32" else 2,
        checkpointing="checkpointing" in training,
        zero=int(str(training.get("zero", 0))),
        num_devices=int(str(training.get("num_devices", 1))),
        offload=offload,
        lora_rank=int(str(training.get("lora_rank", 16))),
        lora_targets=LORA_TARGETS if targets is None else tuple(str(targets).split(",")),
    )


def _table(model: str, setup: TrainingSetup, found: TrainingBytes, fits: dict[int, bool]) -> str:
    from openautoglm.planner.tables import columns
    from openautoglm.units import format_bytes

    full = setup.method == "full"
    kept = "layers' inputs; a layer at a time is computed again" if setup.checkpointing else "of every layer"
    rows = [
        ("parameters", f"{found.num_parameters:,}, {found.num_trainable:,} trained", found.parameter_bytes),
        ("gradients", "", found.gradient_bytes),
        ("master weights", "f32" if full else "adapters are f32 already", found.master_bytes),
        ("optimizer states", str(setup.optimizer), found.optimizer_bytes),
        ("activations", kept, found.activation_bytes),
        ("loss", "logits and their gradients", found.loss_bytes),
        ("a layer's gradients", "", found.working_bytes),
        ("exchange", f"ZeRO {setup.zero} on {setup.num_devices} devices", found.shared_bytes),
        ("predicted peak", "of each device; not all of it at once", found.peak_bytes),
        ("on the host", "offloaded, for each device", found.host_bytes),
    ]
    cells = [(f"  {name}", settings, format_bytes(num_bytes)) for name, settings, num_bytes in rows]
    size = f"{setup.batch_size} x {setup.seq_tokens:,} tokens a step and device"
    head = f"training plan for {model}: {setup.method}, {setup.precision}, {size}"
    lines = [head, "", *columns([("  component", "settings", "bytes"), *cells])]
    lines += ["", *(f"  {format_bytes(size)}: {'fits' if fit else 'does not fit'}" for size, fit in fits.items())]
    return "\n".join(lines).rstrip()
