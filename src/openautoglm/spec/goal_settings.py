"""A goal in a caller's words: the keyword arguments of the library."""

from __future__ import annotations

from typing import TypedDict

from openautoglm.errors import ConfigError
from openautoglm.spec.formats import ActivationScale, AttentionArithmetic, NumberFormat
from openautoglm.spec.goal import Goal, Objective
from openautoglm.spec.offload import OffloadMode, Placement, parse_placement
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import parse_bytes


class GoalSettings(TypedDict, total=False):
    """What a caller may wish for; see `Goal`. Sizes are bytes or text such as "4GiB"; `quant` and `kv` "auto"
    choose."""

    memory: str | int | None
    context: int | None
    concurrency: int | None
    quant: str
    group: int | None
    activations: str
    kv: str
    attention: str
    threads: int | None
    chunk: int | None
    objective: str | None
    offload: str
    place: str | None
    offload_dir: str | None
    spill_memory: str | int
    spill_disk: str | int
    spill_dir: str | None


def make_goal(settings: GoalSettings) -> Goal:
    """Turn a caller's words into a `Goal`; raise `ConfigError` for names and values that are no settings."""
    unknown = set(settings) - set(GoalSettings.__annotations__)
    if unknown:
        raise ConfigError(f"unknown settings {sorted(unknown)}: expected {sorted(GoalSettings.__annotations__)}")
    memory, quant = settings.get("memory"), settings.get("quant", "auto")
    kv, objective = settings.get("kv", "auto"), settings.get("objective")
    for name, value in settings.items():
        wrong = isinstance(value, bool) or not isinstance(value, int | None)
        if wrong and name in ("context", "concurrency", "group", "threads", "chunk"):
            raise ConfigError(f"{name} must be an integer, got {value!r}")
        if name in ("place", "offload_dir", "spill_dir") and not isinstance(value, str | None):
            raise ConfigError(f"{name} must be text, got {value!r}")
    place = settings.get("place")
    try:
        return Goal(
            memory_bytes=parse_bytes(memory) if isinstance(memory, str) else memory,
            context_tokens=settings.get("context"),
            concurrency=settings.get("concurrency"),
            quant=None if quant == "auto" else NumberFormat(quant),
            group=settings.get("group"),
            activations=ActivationScale(settings.get("activations", "group")),
            kv=None if kv == "auto" else NumberFormat(kv),
            attention=AttentionArithmetic(settings.get("attention", "fastest")),
            num_threads=settings.get("threads"),
            chunk_tokens=settings.get("chunk"),
            objective=None if objective is None else Objective(objective),
            offload=OffloadMode(settings.get("offload", "auto")),
            placement=Placement() if place is None else parse_placement(place),
            offload_directory=settings.get("offload_dir"),
            spill=SpillTiers(
                memory_bytes=_size("spill_memory", settings.get("spill_memory", 0)),
                disk_bytes=_size("spill_disk", settings.get("spill_disk", 0)),
                directory=settings.get("spill_dir"),
            ),
        )
    except ValueError as error:
        raise ConfigError(
            f"{error}: quant is auto, bf16, int8, int4 or nf4; activations is group or token; "
            "kv is auto, bf16, f32, int8 or fp8; attention is fastest or portable; "
            "objective is latency, throughput, quality or context; offload is auto, disk or none"
        ) from error


def _size(name: str, value: str | int) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"{name} must be bytes or text such as 4GiB, got {value!r}")
    return parse_bytes(value) if isinstance(value, str) else value
