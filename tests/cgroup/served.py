"""A server inside a memory group, its files out of the page cache before, and what it demands sampled beside it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openautoglm
from openautoglm.engine.assemble import prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from overload.server import running_server
from tests.cgroup.memory_group import MemoryGroup

SAMPLER = Path(__file__).with_name("demand.py")
SAMPLE_SECONDS = 0.01
PSS_SECONDS = 0.5


@dataclass
class Served:
    """A running server. After the block `demand_bytes` and `pss_bytes` are the largest that were seen."""

    url: str
    process: subprocess.Popen[str]
    group: MemoryGroup
    demand_bytes: int = 0
    num_samples: int = 0
    longest_pause_seconds: float = 0.0
    pss_bytes: int = 0
    num_pss_samples: int = 0
    log: list[str] = field(default_factory=list)


def planned_bytes(model: str, *, quant: str, kv: str, **sizes: int) -> int:
    """What `serve` would plan for these settings with all the memory in the world: peak and headroom."""
    goal = Goal(quant=NumberFormat(quant), kv=NumberFormat(kv), **sizes)
    return prepare(EngineOptions(model=model, goal=goal, server=True)).plan.breakdown.total_bytes


def evict(directory: Path) -> None:
    """Take a directory's files out of the page cache, as far as nobody has them mapped."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def served(model: str, *arguments: str, limit_bytes: int) -> Iterator[Served]:
    """Serve `model` in a group of exactly `limit_bytes`; its weights lie in `model` if that is a directory."""
    evict(Path(openautoglm.__file__).parent)
    if Path(model).is_dir():
        evict(Path(model))
    with (
        MemoryGroup(limit_bytes) as group,
        running_server(model, "--no-cache", *arguments, start=group.start) as server,
        _sampled(group) as sampled,
    ):
        running = Served(server.url, server.process, group, log=server.log)
        stop = threading.Event()
        watching = threading.Thread(target=_watch_pss, args=(running, stop))
        watching.start()
        try:
            yield running
        finally:
            stop.set()
            watching.join()
        measured = json.loads(sampled.communicate("end\n")[0])
        running.demand_bytes = measured["demand_bytes"]
        running.num_samples = measured["num_samples"]
        running.longest_pause_seconds = measured["longest_pause_seconds"]


@contextlib.contextmanager
def _sampled(group: MemoryGroup) -> Iterator[subprocess.Popen[str]]:
    """Sample the group's demand until the block ends."""
    command = [sys.executable, str(SAMPLER), str(group.path), str(SAMPLE_SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield sampler
        finally:
            sampler.kill()


def _watch_pss(running: Served, stop: threading.Event) -> None:
    """Add up the proportional sizes of the tree; walking its page tables holds it up, so only twice a second."""
    while not stop.wait(PSS_SECONDS):
        running.pss_bytes = max(running.pss_bytes, measure_process_memory(running.process.pid).pss_bytes)
        running.num_pss_samples += 1
