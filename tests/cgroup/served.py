"""A server inside a memory group, its files out of the page cache before, and what it demands sampled beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openautoglm
from openautoglm.probe.process_memory import measure_process_memory
from tests.cgroup.memory_group import MemoryGroup

SAMPLER = Path(__file__).with_name("demand.py")
SAMPLE_SECONDS = 0.01
PSS_SECONDS = 0.5
START_SECONDS = 120


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
    command = [sys.executable, "-m", "openautoglm", "serve", model, "--port", "0", "--no-cache", *arguments]
    with MemoryGroup(limit_bytes) as group:
        process = group.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        sampler = subprocess.Popen(
            [sys.executable, str(SAMPLER), str(group.path), str(SAMPLE_SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        log: list[str] = []
        reading = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reading.start()
        stop = threading.Event()
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert line.startswith("serving"), (line, log)
            running = Served(line.split()[-1].removesuffix("/v1"), process, group, log=log)
            watching = threading.Thread(target=_watch_pss, args=(running, stop))
            watching.start()
            try:
                yield running
            finally:
                stop.set()
                watching.join()
            sampled = json.loads(sampler.communicate("end\n")[0])
            running.demand_bytes = sampled["demand_bytes"]
            running.num_samples = sampled["num_samples"]
            running.longest_pause_seconds = sampled["longest_pause_seconds"]
        finally:
            sampler.kill()
            sampler.wait()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reading.join(5)
            for pipe in (process.stdout, process.stderr, sampler.stdout, sampler.stdin):
                if pipe is not None:
                    pipe.close()


def _watch_pss(running: Served, stop: threading.Event) -> None:
    """Add up the proportional sizes of the tree; walking its page tables holds it up, so only twice a second."""
    while not stop.wait(PSS_SECONDS):
        running.pss_bytes = max(running.pss_bytes, measure_process_memory(running.process.pid).pss_bytes)
        running.num_pss_samples += 1


def wait_until_idle(url: str, seconds: float = 60.0) -> dict[str, float]:
    """Wait until no request runs or waits; return the metrics then, by name (labels summed)."""
    import httpx

    deadline = time.monotonic() + seconds
    while True:
        metrics: dict[str, float] = {}
        for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0] + ("" if "state=" not in name else ":" + name.split('state="')[1][:4])
                metrics[key] = metrics.get(key, 0.0) + float(value)
        if metrics.get("vllm:num_requests_running") == 0 and metrics.get("vllm:num_requests_waiting") == 0:
            return metrics
        assert time.monotonic() < deadline, "requests are still running"
        time.sleep(0.2)
