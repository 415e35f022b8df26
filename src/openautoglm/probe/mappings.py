"""What the mappings of this process hold, by kind. Source: proc(5), /proc/PID/smaps.

Addresses are left out: a report may leave the machine, and they would weaken address space randomisation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} \S+ \S+ \d+ *(?P<name>.*)")
_SHARED = re.compile(r"\[anon_shmem|/dev/shm/|/memfd:|/SYSV|/dev/zero")
_LIBRARY = re.compile(r"\.so(\.[0-9.]+)?( \(deleted\))?$")
NUM_LARGEST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingKind:
    """Sums in bytes over the mappings of one kind; `largest` are the resident bytes of its largest ones."""

    num_mappings: int
    mapped_bytes: int
    resident_bytes: int
    proportional_bytes: int
    huge_bytes: int
    swapped_bytes: int
    largest: tuple[int, ...]


def probe_mappings(*, root: Path = Path("/")) -> dict[str, MappingKind]:
    """Return the mappings of this process by kind; walks its page tables, which takes milliseconds per GiB."""
    with (root / "proc/self/smaps").open(encoding="utf-8", errors="replace") as lines:
        return parse_mappings(lines)


def parse_mappings(lines: Iterable[str]) -> dict[str, MappingKind]:
    """Sum up the lines of smaps. Kinds: heap, stack, anonymous, shared, library, file, kernel."""
    sums: dict[str, Counter[str]] = {}
    resident: dict[str, list[int]] = {}
    kind = ""
    for line in lines:
        header = _HEADER.match(line)
        if header is not None:
            kind = _kind(header["name"].strip())
            sums.setdefault(kind, Counter())["mappings"] += 1
            continue
        name, _, value = line.partition(":")
        words = value.split()
        if kind and len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            num_bytes = int(words[0]) * 1024
            sums[kind][name] += num_bytes
            if name == "Rss":
                resident.setdefault(kind, []).append(num_bytes)
    return {
        kind: MappingKind(
            num_mappings=fields["mappings"],
            mapped_bytes=fields["Size"],
            resident_bytes=fields["Rss"],
            proportional_bytes=fields["Pss"],
            huge_bytes=fields["AnonHugePages"],
            swapped_bytes=fields["Swap"],
            largest=tuple(sorted(resident.get(kind, ()), reverse=True)[:NUM_LARGEST]),
        )
        for kind, fields in sums.items()
    }


def _kind(name: str) -> str:
    """Return the kind of a mapping by the last field of its first line."""
    if name == "[heap]":
        return "heap"
    if name.startswith("[stack"):
        return "stack"
    if _SHARED.match(name):
        return "shared"
    if not name or name.startswith("[anon"):
        return "anonymous"
    if name.startswith("["):
        return "kernel"
    return "library" if _LIBRARY.search(name) else "file"
