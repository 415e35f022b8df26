"""Times loading a checkpoint: quantising it, quantising and writing the prepacked cache, and reading that cache.

    python benchmarks/load_time.py CHECKPOINT [--quant int4] [--rounds 3]

Every load is a process of its own, in the order first, uncached, cached, cached again, repeated `rounds` times with an
empty cache; before each round the checkpoint is read alone, as far as possible from disk. Prints the seconds of
`load_model` alone, the peak of resident memory and what is left of it; the last lines hold the ratios, and the first
load beside what reading takes: 1.5 times that and 10 s per billion parameters are allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.engine.assemble import prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.executor.load import load_model
from openautoglm.families.registry import weight_map
from openautoglm.memory.weights import num_parameters
from openautoglm.probe.process_memory import measure_process_memory
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.units import MIB

PIECE_BYTES = 16 * MIB


def load_once(directory: Path, quant: str, cache: Path | None) -> None:
    """Load in this process and print what it took as JSON."""
    goal = Goal(quant=NumberFormat(quant), context_tokens=512, concurrency=1)
    prepared = prepare(EngineOptions(model=str(directory), goal=goal))
    with Checkpoint.open(directory) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(prepared.spec, prepared.config, shapes)
        begin = time.perf_counter()
        packed = None if cache is None else PackedCache(directory=cache)
        executor = load_model(checkpoint, prepared.spec, weights, prepared.plan, cache=packed)
        seconds = time.perf_counter() - begin
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    left_mib = measure_process_memory().rss_bytes // MIB
    parameters = num_parameters(prepared.spec) / 1e9
    executor.close()
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "left_mib": left_mib, "billions": parameters}))


def drop_pages(checkpoint: Path) -> None:
    """Empty the page cache of a checkpoint, as far as nobody else holds it."""
    for path in checkpoint.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_seconds(checkpoint: Path) -> float:
    """Return how long one thread reads the weights' files, to the end and in pieces of a slice."""
    drop_pages(checkpoint)
    room = memoryview(bytearray(PIECE_BYTES))
    begin = time.perf_counter()
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass
    return time.perf_counter() - begin


def in_process(arguments: argparse.Namespace, cache: Path | None) -> dict[str, float]:
    command = [sys.executable, __file__, str(arguments.checkpoint), "--quant", arguments.quant]
    command += ["--once", "off" if cache is None else str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quant", choices=["int8", "int4", "nf4"], default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once is not None:
        load_once(arguments.checkpoint, arguments.quant, None if arguments.once == "off" else Path(arguments.once))
        return
    seconds: dict[str, list[float]] = {"first": [], "uncached": [], "cached": [], "cached again": []}
    reads, above, billions = [], [], 0.0
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as cache:
            reads.append(read_seconds(arguments.checkpoint))
            drop_pages(arguments.checkpoint)
            for kind in seconds:
                figures = in_process(arguments, None if kind == "uncached" else Path(cache))
                seconds[kind].append(figures["seconds"])
                peak_mib, left_mib, billions = figures["peak_mib"], figures["left_mib"], figures["billions"]
                if kind == "first":
                    above.append(peak_mib - left_mib)
                print(
                    f"{arguments.quant} {kind:<13}{figures['seconds']:>8.2f} s   peak {peak_mib:,.0f} MiB, "
                    f"{left_mib:,.0f} left",
                    flush=True,
                )
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = ", ".join(f"{kind} {medians['uncached'] / value:.1f}x" for kind, value in medians.items())
    shares = [first / (1.5 * read + 10 * billions) for first, read in zip(seconds["first"], reads, strict=True)]
    print(
        f"first load: {max(shares):.2f} of what is allowed in its worst round (reading takes "
        f"{statistics.median(reads):.2f} s), and at most {max(above):,.0f} MiB more than is left"
    )
    print(f"speed over uncached, medians of {arguments.rounds}: {ratios}")


if __name__ == "__main__":
    main()
