"""The processor: its name, the cores that this process may use, the instruction sets that kernels may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from openautoglm.probe.cgroup import cpu_quota
from openautoglm.spec.machine import CpuSpec

# What each of the core's translation units is compiled for (src/native); a set needs all of its flags.
_AVX2_FLAGS = frozenset({"avx2", "fma", "f16c"})
_AVX512_FLAGS = _AVX2_FLAGS | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
_ISA_FLAGS = (
    ("avx2", _AVX2_FLAGS),
    ("avx512", _AVX512_FLAGS),
    ("avx512bf16", _AVX512_FLAGS | {"avx512_bf16"}),
    ("amx", _AVX512_FLAGS | {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}),
)


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Return the name and the flags of the first processor of /proc/cpuinfo (x86 `flags`, Arm `Features`)."""
    name, flags = "", frozenset[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "Model", "cpu model") and not name:
            name = value
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name, flags


def isas_of_flags(flags: frozenset[str]) -> tuple[str, ...]:
    """Return the kernel sets that a processor with these flags can run, worst first; "scalar" always can."""
    return ("scalar", *(name for name, needed in _ISA_FLAGS if needed <= flags))


def usable_cores(num_affinity: int, quota_cores: float | None) -> int:
    """Return the cores to use: at most the quota's whole cores (a spinning pool above it is only throttled)."""
    return num_affinity if quota_cores is None else max(1, min(num_affinity, int(quota_cores)))


def probe_cpu(root: Path = Path("/")) -> CpuSpec:
    """Describe this machine's processor; `root` is where /proc and /sys stand."""
    file = root / "proc/cpuinfo"
    name, flags = parse_cpuinfo(file.read_text()) if file.is_file() else ("", frozenset[str]())
    architecture = platform.machine()
    return CpuSpec(
        name=name or architecture,
        architecture=architecture,
        num_cores=usable_cores(len(os.sched_getaffinity(0)), cpu_quota(root)),
        isas=isas_of_flags(flags),
    )
