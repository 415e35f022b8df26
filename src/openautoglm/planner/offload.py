"""Which layers stay on disk, and how fast that will be.

Memory comes first: layers go on disk only where no format, step, number of sequences or usable context that the goal
leaves open makes the model fit. int4 in memory beats int8 on disk, as a disk is at least ten times slower than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from openautoglm.memory.offload import NUM_READERS
from openautoglm.planner import candidates
from openautoglm.planner.price import Choice, Pricer
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode, OffloadPlan, OffloadSpeed
from openautoglm.spec.plan import Plan
from openautoglm.units import format_bytes

# What decoding one sequence reaches of the bandwidth at which all threads together read memory.
DECODE_SHARE = {
    NumberFormat.F32: 0.85,
    NumberFormat.BF16: 0.85,
    NumberFormat.INT8: 0.75,
    NumberFormat.INT4: 0.60,
    NumberFormat.NF4: 0.50,
}
# Part of the shorter of reading and computing that is not hidden behind the longer: readers need the processor to wake,
# and memory. From benchmarks/offload_speed.py on two cores.
NOT_HIDDEN = 0.3


def choices(pricer: Pricer, goal: Goal, budget_bytes: int, num_threads: int) -> Iterator[Choice]:
    """Yield every choice to try, best first, those with layers on disk where the goal allows them.

    A goal of DISK puts layers there at once, AUTO when nothing with a usable context fits in memory.
    """
    every = list(candidates.choices(pricer.spec, goal, num_threads))
    if goal.offload is OffloadMode.NONE:
        yield from every
        return
    if goal.offload is OffloadMode.DISK:
        yield from _fitting(pricer, goal, every, budget_bytes)
        return
    contexts = sorted({choice.context_tokens for choice in every}, reverse=True)
    # Below that, a conversation gains more from a longer context than from the layers that would fit instead.
    usable = [tokens for tokens in contexts if tokens >= candidates.USABLE_CONTEXT_TOKENS] or contexts[:1]
    for group in (usable, *([tokens] for tokens in contexts if tokens not in usable)):
        in_group = [choice for choice in every if choice.context_tokens in group]
        yield from in_group
        yield from _fitting(pricer, goal, _tightest(in_group), budget_bytes)


def describe(pricer: Pricer, goal: Goal, choice: Choice) -> OffloadPlan | None:
    """Return what a choice leaves on disk, its speed unknown; None for nothing."""
    if not choice.disk_layers:
        return None
    return OffloadPlan(
        layers=choice.disk_layers,
        file_bytes=pricer.packed_file_bytes(choice.formats),
        disk_bytes=pricer.disk_bytes(choice),
        ring_bytes=pricer.breakdown(choice).ring_bytes,
        num_readers=NUM_READERS,
        directory=goal.offload_directory or "",
    )


def predict(
    plan: Plan,
    *,
    disk_bytes_per_second: float,
    memory_bytes_per_second: float,
    direct: bool,
    write_seconds: float,
) -> Plan:
    """Return a plan with layers on disk that says how fast one sequence decodes, from two measured bandwidths.

    `write_seconds` is what writing the file will take before that; 0 where it stands already.

    A step multiplies every layer and the head once, and readers work meanwhile. So it takes as long as the slower of
    the two, reading from disk or reading all weights from memory at the share that decoding reaches, and NOT_HIDDEN of
    the other.
    """
    assert plan.offload is not None
    disk_seconds = plan.offload.disk_bytes / disk_bytes_per_second
    read_bytes = plan.breakdown.layer_weight_bytes + plan.offload.disk_bytes + plan.breakdown.head_weight_bytes
    memory_seconds = read_bytes / (memory_bytes_per_second * DECODE_SHARE[plan.formats.layers.number])
    speed = OffloadSpeed(
        disk_bytes_per_second=disk_bytes_per_second,
        memory_bytes_per_second=memory_bytes_per_second,
        direct=direct,
        write_seconds=write_seconds,
        tokens_per_second=1 / (max(disk_seconds, memory_seconds) + NOT_HIDDEN * min(disk_seconds, memory_seconds)),
    )
    slower = "the disk" if disk_seconds > memory_seconds else "memory"
    reason = (
        f"speed: {speed.tokens_per_second:.2f} tokens/s predicted for one sequence, limited by {slower}: each step "
        f"reads {format_bytes(plan.offload.disk_bytes)} from disk at "
        f"{format_bytes(int(disk_bytes_per_second))}/s; all in memory it would be {1 / memory_seconds:.2f}"
    )
    size = format_bytes(plan.offload.file_bytes)
    first = (
        f"first load: writes a file of packed weights of {size}, about {write_seconds:.0f} s for that"
        if write_seconds > 0
        else f"load: a file of packed weights of {size} stands on the disk already"
    )
    caution = () if direct else ("disk: its file system has no direct reads, so reading goes through the page cache",)
    return replace(plan, offload=replace(plan.offload, speed=speed), reasons=(*plan.reasons, reason, first, *caution))


def reason(pricer: Pricer, goal: Goal, plan: Plan) -> Iterator[str]:
    """Say which layers stay on disk and why."""
    offload = plan.offload
    if offload is None:
        room = pricer.disk_room
        if goal.offload is not OffloadMode.DISK:
            return
        if room is None or room.holds(pricer.packed_file_bytes(plan.formats)):
            yield "offload: no layer stays on disk, because all of them fit in memory"
        else:
            yield (
                f"offload: no layer stays on disk, because {room.directory} can take only "
                f"{format_bytes(room.free_bytes)}: choose another disk with --offload-dir"
            )
        return
    placed = f", {len(goal.placement.disk)} of them set by you" if goal.placement.disk else ""
    if goal.placement.disk == offload.layers:
        why = "set by you"
    elif goal.offload is OffloadMode.DISK:
        why = f"rather than a smaller format, context or fewer sequences, as you set{placed}"
    else:
        why = f"because nothing that may be chosen fits in memory{placed}"
    yield (
        f"offload: layers {spans(offload.layers)} ({format_bytes(offload.disk_bytes)}) stay on disk, {why}; they are "
        f"read by every step into a ring of {format_bytes(offload.ring_bytes)}"
    )


def spans(layers: Sequence[int]) -> str:
    """Return layer numbers as short text, such as "0-3, 7"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def spread(spec: ArchSpec, goal: Goal, num_more: int) -> tuple[int, ...]:
    """Return the layers on disk when the planner adds `num_more` to those that the user put there.

    They stand evenly among those that it may choose from: computing what lies between hides the reading.
    """
    fixed = {*goal.placement.disk, *goal.placement.memory}
    free = [layer for layer in range(spec.num_layers) if layer not in fixed]
    added = {free[(2 * index + 1) * len(free) // (2 * num_more)] for index in range(num_more)}
    return tuple(sorted(added.union(goal.placement.disk)))


def _fitting(pricer: Pricer, goal: Goal, of: Sequence[Choice], budget_bytes: int) -> Iterator[Choice]:
    """Yield each choice with the fewest layers on disk that make it fit; those that never fit are left out."""
    most = pricer.spec.num_layers - len({*goal.placement.disk, *goal.placement.memory})
    for choice in of:
        # Layers on disk may take more for their ring than they free: the first ones, and tiny ones all together.
        least = pricer.total_bytes(replace(choice, disk_layers=spread(pricer.spec, goal, most)))
        for num_more in range(most + 1) if least <= budget_bytes or most < 3 else range(1):
            placed = replace(choice, disk_layers=spread(pricer.spec, goal, num_more))
            if pricer.fits(placed, budget_bytes):
                yield placed
                break


def _tightest(of: Sequence[Choice]) -> list[Choice]:
    """Return the choices with the last one's formats, context and sequences: all that differs is the step."""
    last = of[-1]
    return [
        choice
        for choice in of
        if (choice.formats, choice.context_tokens, choice.concurrency)
        == (last.formats, last.context_tokens, last.concurrency)
    ]
