"""Measures what a loaded executor and the processes around it really take, for the receipt."""

from __future__ import annotations

import os

from openautoglm.executor.native import NativeExecutor
from openautoglm.planner.explain import MeasuredMemory
from openautoglm.probe.process_memory import measure_process_memory, peak_resident_bytes


def measured_memory(executor: NativeExecutor, runtime_bytes: int, *, tree: int | None = None) -> MeasuredMemory:
    """Return what the executor took and what the process tree under `tree` (default: this process) takes now.

    `runtime_bytes` is the tree's proportional set size before loading. The peak is this process's own, with the others
    of the tree as they are now: they do not grow while a model loads.
    """
    here = os.getpid()
    own_bytes = measure_process_memory(here).pss_bytes
    tree_bytes = own_bytes if tree is None else measure_process_memory(tree).pss_bytes
    return MeasuredMemory(
        weight_bytes=executor.weight_bytes,
        kv_bytes=executor.kv_bytes,
        workspace_bytes=executor.workspace_bytes,
        runtime_bytes=runtime_bytes,
        untouched_bytes=executor.untouched_bytes,
        resident_bytes=tree_bytes,
        peak_bytes=peak_resident_bytes(here) + tree_bytes - own_bytes,
    )
