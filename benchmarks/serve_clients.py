"""Serves a checkpoint and drives it with concurrent streaming clients of the official `openai` package.

    python benchmarks/serve_clients.py CHECKPOINT --quant int4 --quant int8 --clients 8 --requests 3

Prints, per format: start-up seconds, time to first token, time between tokens, tokens per second over all clients, and
the peak PSS of the server's process tree, beside what its plan predicted. `--output` also writes them as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from openai import AsyncOpenAI

from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.units import format_bytes

READY_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRun:
    """One answer: seconds to the first token, the gaps after it, and the tokens."""

    first_token_seconds: float
    gap_seconds: tuple[float, ...]
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one format reached."""

    quant: str
    clients: int
    prompt_tokens: int
    start_seconds: float
    first_token_median_seconds: float
    first_token_worst_seconds: float
    gap_median_seconds: float
    gap_p99_seconds: float
    tokens_per_second: float
    peak_pss_bytes: int


class PeakWatch(threading.Thread):
    """Samples the process tree's PSS until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stop_event, self.peak_bytes = pid, threading.Event(), 0

    def run(self) -> None:
        """Sample twice a second: reading PSS walks the page tables, so more would disturb the run."""
        while not self._stop_event.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, measure_process_memory(self._pid).pss_bytes)

    def stop(self) -> int:
        """Stop sampling and return the peak."""
        self._stop_event.set()
        self.join()
        return self.peak_bytes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {READY_SECONDS:.0f} s")


async def ask(client: AsyncOpenAI, model: str, prompt: list[int], max_tokens: int) -> ClientRun:
    begin = time.perf_counter()
    arrivals: list[float] = []
    completion_tokens = 0
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=max_tokens, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    async for chunk in stream:
        if chunk.choices:
            arrivals.append(time.perf_counter())
        if chunk.usage is not None:
            completion_tokens = chunk.usage.completion_tokens
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(arrivals))
    return ClientRun(first_token_seconds=arrivals[0] - begin, gap_seconds=gaps, completion_tokens=completion_tokens)


async def drive(port: int, arguments: argparse.Namespace) -> tuple[list[ClientRun], float]:
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="EMPTY", timeout=600)
    model = (await client.models.list()).data[0].id
    rng = random.Random(7)

    async def one_client() -> list[ClientRun]:
        runs = []
        for _ in range(arguments.requests):
            prompt = [rng.randrange(10, arguments.token_limit) for _ in range(arguments.prompt_tokens)]
            runs.append(await ask(client, model, prompt, arguments.max_tokens))
        return runs

    begin = time.perf_counter()
    done = await asyncio.gather(*(one_client() for _ in range(arguments.clients)))
    return [run for runs in done for run in runs], time.perf_counter() - begin


def measure(quant: str, arguments: argparse.Namespace) -> Figures:
    port = free_port()
    limits = ["--concurrency", str(arguments.clients), "--context", str(arguments.context)]
    serve = [sys.executable, "-m", "openautoglm", "serve", str(arguments.checkpoint), "--port", str(port)]
    command = [*serve, "--quant", quant, *limits]
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    watch = PeakWatch(process.pid)
    try:
        watch.start()
        wait_until_ready(port, process)
        start_seconds = time.perf_counter() - begin
        runs, seconds = asyncio.run(drive(port, arguments))
    finally:
        peak_pss_bytes = watch.stop()
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
    gaps = sorted(gap for run in runs for gap in run.gap_seconds)
    first = [run.first_token_seconds for run in runs]
    return Figures(
        quant=quant,
        clients=arguments.clients,
        prompt_tokens=arguments.prompt_tokens,
        start_seconds=start_seconds,
        first_token_median_seconds=statistics.median(first),
        first_token_worst_seconds=max(first),
        gap_median_seconds=statistics.median(gaps),
        gap_p99_seconds=gaps[int(len(gaps) * 0.99)],
        tokens_per_second=sum(run.completion_tokens for run in runs) / seconds,
        peak_pss_bytes=peak_pss_bytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quant", action="append", choices=["bf16", "int8", "int4", "nf4"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=3, help="requests per client, one after the other")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--token-limit", type=int, default=2000, help="prompt tokens are drawn below this id")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    figures = [measure(quant, arguments) for quant in arguments.quant or ["int4", "int8"]]
    for row in figures:
        print(
            f"{row.quant}: start {row.start_seconds:.1f} s, first token {row.first_token_median_seconds:.2f} s "
            f"(worst {row.first_token_worst_seconds:.2f}), between tokens {row.gap_median_seconds * 1e3:.0f} ms "
            f"(p99 {row.gap_p99_seconds * 1e3:.0f}), {row.tokens_per_second:.1f} tokens/s over {row.clients} clients, "
            f"peak PSS {format_bytes(row.peak_pss_bytes)}"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) for row in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
