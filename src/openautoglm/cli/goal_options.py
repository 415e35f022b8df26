"""The options that plan, run, serve and bench share: what to fit, and into what."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from openautoglm.settings import KV_NAMES
from openautoglm.spec.formats import WEIGHT_GROUPS, ActivationScale, AttentionArithmetic, NumberFormat
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.offload import OffloadMode, Placement, parse_placement
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import parse_bytes

QUANT_CHOICES = ("auto", "bf16", "int8", "int4", "nf4")

_OPTIONS = (
    click.option("--memory", metavar="SIZE", help="Memory budget of the whole process tree, such as 4GiB."),
    click.option("--context", type=click.IntRange(min=1), metavar="TOKENS", help="Context of each sequence."),
    click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Sequences that must fit at once."),
    click.option("--quant", type=click.Choice(QUANT_CHOICES), default=None, help="Weight format (default auto)."),
    click.option("--group", type=click.Choice([str(group) for group in WEIGHT_GROUPS]), help="Group of int4 and nf4."),
    click.option(
        "--activations",
        type=click.Choice([scale.value for scale in ActivationScale]),
        default=ActivationScale.GROUP.value,
        show_default=True,
        help="Granularity of activation scales: per token and 128 features, or per token.",
    ),
    click.option(
        "--kv",
        type=click.Choice(KV_NAMES),
        default=None,
        help="KV cache format (default auto: bf16, int8 where that fits more). int8 and fp8 take half the bytes.",
    ),
    click.option(
        "--chunk",
        type=click.IntRange(min=1),
        metavar="TOKENS",
        help="Most tokens of one step: long prompts are read in such chunks (default 512, less in little memory).",
    ),
    click.option(
        "--objective",
        type=click.Choice([objective.value for objective in Objective]),
        default=None,
        help="What to favour where the other options leave a choice.",
    ),
    click.option(
        "--attention",
        type=click.Choice([kind.value for kind in AttentionArithmetic]),
        default=AttentionArithmetic.FASTEST.value,
        show_default=True,
        help="portable: with quantised weights, equal bytes on every instruction set.",
    ),
    click.option(
        "--offload",
        type=click.Choice([mode.value for mode in OffloadMode]),
        is_flag=False,
        flag_value=OffloadMode.DISK.value,
        default=OffloadMode.AUTO.value,
        show_default=True,
        help="Layers on disk, read by every step: auto: if nothing else fits; disk (or no value): rather than a "
        "smaller format, context or fewer sequences; none: never. In plan --train: optimizer states on the host.",
    ),
    click.option(
        "--place",
        metavar="MAP",
        help="Layers that stay on disk, or in memory, such as layers.20-27=disk,layers.0=memory.",
    ),
    click.option("--offload-dir", metavar="DIR", help="Where weights on disk are kept (with the packed weights)."),
    click.option(
        "--spill-memory",
        metavar="SIZE",
        help="Host memory, within --memory, for the KV cache of requests that are set back (default: none).",
    ),
    click.option(
        "--spill-disk", metavar="SIZE", help="Disk space for the same, once that memory is full (default: none)."
    ),
    click.option("--spill-dir", metavar="DIR", help="Where on disk that is (~/.cache/openautoglm/spill)."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Compute threads (default: usable cores)."),
)


def goal_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command and pass them to it as one `goal: Goal`."""

    @functools.wraps(command)
    def with_goal(
        *args: object,
        memory: str | None,
        context: int | None,
        concurrency: int | None,
        quant: str | None,
        group: str | None,
        activations: str,
        kv: str | None,
        chunk: int | None,
        objective: str | None,
        attention: str,
        offload: str,
        place: str | None,
        offload_dir: str | None,
        spill_memory: str | None,
        spill_disk: str | None,
        spill_dir: str | None,
        threads: int | None,
        **kwargs: object,
    ) -> object:
        goal = Goal(
            memory_bytes=None if memory is None else parse_bytes(memory),
            context_tokens=context,
            concurrency=concurrency,
            quant=None if quant in (None, "auto") else NumberFormat(quant),
            group=None if group is None else int(group),
            activations=ActivationScale(activations),
            kv=None if kv in (None, "auto") else NumberFormat(kv),
            attention=AttentionArithmetic(attention),
            num_threads=threads,
            offload=OffloadMode(offload),
            placement=Placement() if place is None else parse_placement(place),
            offload_directory=offload_dir,
            spill=SpillTiers(
                memory_bytes=0 if spill_memory is None else parse_bytes(spill_memory),
                disk_bytes=0 if spill_disk is None else parse_bytes(spill_disk),
                directory=spill_dir,
            ),
            chunk_tokens=chunk,
            objective=None if objective is None else Objective(objective),
        )
        return command(*args, goal=goal, **kwargs)

    for option in reversed(_OPTIONS):
        with_goal = option(with_goal)
    return with_goal
