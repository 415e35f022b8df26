"""This machine's limits, measured in the same run as what is compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.units import MIB

PROBE_BYTES = 512 * MIB
PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Peaks of dot products in registers and read bandwidth over 2 MB and 4 KB pages, all threads together.

    Where a processor has no bf16 dot products they run as f32, and the f32 peak is theirs.
    """

    isa: str
    num_threads: int
    int8_operations_per_second: float
    bf16_operations_per_second: float
    f32_operations_per_second: float
    read_bytes_per_second: float
    small_page_read_bytes_per_second: float


def measure_roofline(num_threads: int, isa: str = "") -> Roofline:
    """Measure the limits of `num_threads` threads, with an instruction set (default: the best).

    Takes about a second and PROBE_BYTES of memory.
    """
    from openautoglm.native import _core

    peaks = {kind: _core.probe_peak(kind, num_threads, PROBE_SECONDS, isa=isa) for kind in ("int8", "bf16", "f32")}
    return Roofline(
        isa=_core.selected_isa(isa),
        num_threads=num_threads,
        int8_operations_per_second=peaks["int8"] or peaks["f32"],
        bf16_operations_per_second=peaks["bf16"] or peaks["f32"],
        f32_operations_per_second=peaks["f32"],
        read_bytes_per_second=_core.probe_read_bandwidth(num_threads, PROBE_BYTES, True),
        small_page_read_bytes_per_second=_core.probe_read_bandwidth(num_threads, PROBE_BYTES, False),
    )


def best_of(first: Roofline, *others: Roofline) -> Roofline:
    """Return the best figure of each kind: limits are what the machine can do, not what neighbours left of it."""
    every = (first, *others)
    return Roofline(
        isa=first.isa,
        num_threads=first.num_threads,
        int8_operations_per_second=max(one.int8_operations_per_second for one in every),
        bf16_operations_per_second=max(one.bf16_operations_per_second for one in every),
        f32_operations_per_second=max(one.f32_operations_per_second for one in every),
        read_bytes_per_second=max(one.read_bytes_per_second for one in every),
        small_page_read_bytes_per_second=max(one.small_page_read_bytes_per_second for one in every),
    )
