"""A server in a process of its own, and what its metrics say."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

STOP_SECONDS = 60.0
Starter = Callable[..., subprocess.Popen[str]]


@dataclass
class RunningServer:
    """A server that takes requests: its address, its process, and the lines of its log so far."""

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running_server(
    model: str, *arguments: str, start: Starter = subprocess.Popen, environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Serve `model` on a free port until the block ends; `start` starts the command, in a control group for example."""
    command = [sys.executable, "-m", "openautoglm", "serve", model, "--port", "0", *arguments]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    log: list[str] = []
    reading = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reading.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("serving"):
            reading.join(5)
            raise RuntimeError(f"the server does not start: {line}{''.join(log)}")
        yield RunningServer(line.split()[-1].removesuffix("/v1"), process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reading.join(5)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def read_metrics(url: str) -> dict[str, float]:
    """Return the metrics by name, with labels summed; `name:label` for the labels "state" and "rung"."""
    metrics: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        if line.startswith("#"):
            continue
        labelled, _, value = line.rpartition(" ")
        name, _, labels = labelled.partition("{")
        for label in ("state", "rung"):
            _, found, rest = labels.partition(f'{label}="')
            name += f":{rest.partition(chr(34))[0]}" if found else ""
        metrics[name] = metrics.get(name, 0.0) + float(value)
    return metrics


def wait_until_idle(url: str, seconds: float = 60.0) -> dict[str, float]:
    """Wait until no request runs or waits; return the metrics then. Raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while True:
        metrics = read_metrics(url)
        if metrics.get("vllm:num_requests_running") == 0 and metrics.get("vllm:num_requests_waiting") == 0:
            return metrics
        if time.monotonic() > deadline:
            raise TimeoutError(f"requests are still running after {seconds:g} s")
        time.sleep(0.2)
