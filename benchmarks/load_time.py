"""Times loading a checkpoint: quantising it, quantising and writing the prepacked cache, and reading that cache.

    python benchmarks/load_time.py CHECKPOINT [--quant int4] [--rounds 3]

Every load is a process of its own, in the order first, uncached, cached, cached again, repeated `rounds` times with an
empty cache. Prints the seconds of `load_model` alone and the peak resident memory; the last line holds the ratios.
"""

from __future__ import annotations

import argparse
import json
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
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.units import MIB


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
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "weights_mib": executor.weight_bytes // MIB}))


def in_process(arguments: argparse.Namespace, cache: Path | None) -> tuple[float, int]:
    command = [sys.executable, __file__, str(arguments.checkpoint), "--quant", arguments.quant]
    command += ["--once", "off" if cache is None else str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    return figures["seconds"], figures["peak_mib"]


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
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as cache:
            for kind in seconds:
                took, peak_mib = in_process(arguments, None if kind == "uncached" else Path(cache))
                seconds[kind].append(took)
                print(f"{arguments.quant} {kind:<13}{took:>8.2f} s   peak {peak_mib:,} MiB", flush=True)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = ", ".join(f"{kind} {medians['uncached'] / value:.1f}x" for kind, value in medians.items())
    print(f"speed over uncached, medians of {arguments.rounds}: {ratios}")


if __name__ == "__main__":
    main()
