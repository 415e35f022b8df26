"""What a machine offers, as seen by this process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSpec:
    """Processor: usable cores (affinity and quota applied), name and instruction sets that kernels may use."""

    name: str
    architecture: str
    num_cores: int
    isas: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySpec:
    """Host memory; `limit_bytes` is the least of physical memory and every cgroup limit above this process."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int
    page_bytes: int
    transparent_huge_pages: str
    swap_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """An accelerator: present, or described by its memory alone."""

    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """The file system that holds caches."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A machine as one value."""

    cpu: CpuSpec
    memory: MemorySpec
    disk: DiskSpec
    gpus: tuple[GpuSpec, ...] = ()
