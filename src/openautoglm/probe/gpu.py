"""Accelerators that are present; they are described, nothing here runs on them."""

from __future__ import annotations

import os
import shutil
import subprocess

from openautoglm.log import get_logger
from openautoglm.spec.machine import GpuSpec
from openautoglm.units import MIB

_QUERY = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
_TIMEOUT_SECONDS = 5.0
_logger = get_logger(__name__)


def parse_gpu_list(text: str) -> tuple[GpuSpec, ...]:
    """Parse nvidia-smi's lines "name, total MiB, free MiB"; lines without figures (a lost device) are left out."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            gpus.append(GpuSpec(name=fields[0], memory_bytes=int(fields[1]) * MIB, free_bytes=int(fields[2]) * MIB))
    return tuple(gpus)


def probe_gpus(program: str = "nvidia-smi") -> tuple[GpuSpec, ...]:
    """Return the accelerators that `program` lists; none where it is absent, fails or takes too long.

    CUDA_VISIBLE_DEVICES set to nothing, or to -1, hides them, as it does from CUDA programs.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "any").strip() in ("", "-1"):
        return ()
    path = shutil.which(program)
    if path is None:
        return ()
    try:
        answer = subprocess.run(
            [path, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True, errors="replace"
        )
    except (subprocess.SubprocessError, OSError) as error:
        _logger.warning("no accelerators described: %s failed: %s", path, error)
        return ()
    return parse_gpu_list(answer.stdout)
