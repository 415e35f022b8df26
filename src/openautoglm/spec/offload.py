"""Weights that stay on disk: what a user wishes, and what a plan makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from openautoglm.errors import ConfigError

_ENTRY = re.compile(r"layers\.([0-9]{1,5})(?:-([0-9]{1,5}))?=(disk|memory)", re.ASCII)


class OffloadMode(StrEnum):
    """When layers may stay on disk.

    AUTO: where nothing smaller fits the memory. DISK: rather than a smaller format, context or fewer sequences.
    NONE: never.
    """

    AUTO = "auto"
    DISK = "disk"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a user wants layers: `disk` and `memory` are layer numbers, ascending; the others are the planner's."""

    disk: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return the text that `parse_placement` reads."""
        places = [(layer, "disk") for layer in self.disk] + [(layer, "memory") for layer in self.memory]
        return ",".join(f"layers.{layer}={place}" for layer, place in sorted(places))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRoom:
    """What a disk can hold of packed weights in `directory`: `free_bytes` more, beside files of `file_sizes` there."""

    directory: str
    free_bytes: int
    file_sizes: frozenset[int] = frozenset()

    def holds(self, file_bytes: int) -> bool:
        """Return whether a file of this size fits, or stands there already."""
        return file_bytes <= self.free_bytes or file_bytes in self.file_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadSpeed:
    """A predicted speed, and what it rests on: the bandwidths were measured.

    `tokens_per_second` is of one sequence that is decoded alone. `direct`: reads go past the page cache.
    `write_seconds` is what writing the file of packed weights adds to the first load; 0 where it stands already.
    """

    disk_bytes_per_second: float
    memory_bytes_per_second: float
    direct: bool
    tokens_per_second: float
    write_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPlan:
    """Layers whose matrices stay in a packed file below `directory` ("": the default cache) and are read by each step.

    The file takes `file_bytes`, as it holds all weights; `disk_bytes` are those of the layers on disk; `ring_bytes` of
    memory are what they are read into, by `num_readers` threads.
    """

    layers: tuple[int, ...]
    file_bytes: int
    disk_bytes: int
    ring_bytes: int
    num_readers: int
    directory: str = ""
    speed: OffloadSpeed | None = None


def parse_placement(text: str) -> Placement:
    """Read a map such as "layers.20-27=disk,layers.0=memory".

    Raises `ConfigError` for anything else, and for a layer that is named twice.
    """
    places: dict[int, str] = {}
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            raise ConfigError(
                f"cannot read {entry.strip()!r} as a place: expected layers.FIRST-LAST=disk, layers.NUMBER=disk or "
                "the same with memory, several joined by commas; only layers have places"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{entry.strip()!r} names no layers: the first number is above the second")
        for layer in range(first, last + 1):
            if layer in places:
                raise ConfigError(f"layer {layer} has two places: name it once")
            places[layer] = match[3]
    return Placement(
        disk=tuple(sorted(layer for layer, place in places.items() if place == "disk")),
        memory=tuple(sorted(layer for layer, place in places.items() if place == "memory")),
    )
