"""This machine as one value."""

from __future__ import annotations

from pathlib import Path

from openautoglm.probe.cpu import probe_cpu
from openautoglm.probe.disk import probe_disk
from openautoglm.probe.gpu import probe_gpus
from openautoglm.probe.memory import probe_memory
from openautoglm.spec.machine import MachineSpec


def probe_machine(root: Path = Path("/")) -> MachineSpec:
    """Describe the machine as this process sees it; `root` is where /proc and /sys stand."""
    return MachineSpec(cpu=probe_cpu(root), memory=probe_memory(root), disk=probe_disk(), gpus=probe_gpus())
