"""Speed with layers on disk, predicted and measured, over several shares of the layers, past the page cache.

    python benchmarks/offload_speed.py CHECKPOINT [--quant int8] [--shares 0.25 0.5 0.75 1] [--offload-dir DIR]
                                       [--rounds 3] [--json FILE]

Each round and share is a process of its own: it plans with `--place` (which measures disk and memory, as every plan
does), loads, evicts the packed file from the page cache, decodes one sequence token by token, and prints the median
time of a step. The file is packed once, before. At the end stand predicted and measured tokens per second, their ratio,
and the bytes of the packed file that the page cache held before and after the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openautoglm.bench.batches import Row, random_step
from openautoglm.engine.assemble import open_engine, prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.planner.offload import spread
from openautoglm.probe.page_cache import cached_bytes
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode, Placement
from openautoglm.units import MIB

NUM_STEPS = 24
NUM_WARM_STEPS = 3
CONTEXT_TOKENS = 256


def evict(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_once(checkpoint: Path, quant: str, share: float, directory: Path) -> dict[str, object]:
    """Plan, load and step in this process."""
    goal = Goal(quant=NumberFormat(quant), context_tokens=CONTEXT_TOKENS, concurrency=1)
    spec = prepare(EngineOptions(model=str(checkpoint), goal=goal)).spec
    layers = spread(spec, goal, max(1, round(share * spec.num_layers)))
    goal = Goal(
        quant=goal.quant,
        context_tokens=CONTEXT_TOKENS,
        concurrency=1,
        offload=OffloadMode.AUTO,
        placement=Placement(disk=layers),
        offload_directory=str(directory),
    )
    prepared = prepare(EngineOptions(model=str(checkpoint), goal=goal), to_run=True)
    opened = open_engine(prepared)
    executor, plan = opened.executor, opened.plan
    assert plan.offload is not None
    assert plan.offload.speed is not None
    (packed,) = directory.glob("*.packed")
    evict(packed)
    before = cached_bytes(packed)
    seconds = []
    for position in range(NUM_STEPS):
        row = Row(blocks=tuple(range(CONTEXT_TOKENS // 16)), num_cached=position, num_new=1)
        step = random_step([row], vocab_size=spec.vocab_size, seed=position, sample=True)
        begun = time.perf_counter()
        executor.submit(step).result()
        seconds.append(time.perf_counter() - begun)
    after = cached_bytes(packed)
    opened.engine.close()
    # Means, not medians: a disk's hiccups are part of its speed, in the probe as in the steps.
    step_seconds = statistics.mean(seconds[NUM_WARM_STEPS:])
    return {
        "share": share,
        "num_layers": len(layers),
        "disk_bytes": plan.offload.disk_bytes,
        "weight_bytes": plan.breakdown.weight_bytes,
        "ring_bytes": plan.offload.ring_bytes,
        "disk_bytes_per_second": plan.offload.speed.disk_bytes_per_second,
        "memory_bytes_per_second": plan.offload.speed.memory_bytes_per_second,
        "direct": plan.offload.speed.direct,
        "predicted": plan.offload.speed.tokens_per_second,
        "measured": 1 / step_seconds,
        "cached_bytes_before": before,
        "cached_bytes_after": after,
    }


def in_process(arguments: argparse.Namespace, share: float, directory: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(arguments.checkpoint), "--quant", arguments.quant]
    command += ["--once", str(share), "--offload-dir", str(directory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(arguments: argparse.Namespace, results: list[dict[str, float]]) -> str:
    """Return the table of all rounds."""
    lines = [
        f"{arguments.checkpoint.name}, {arguments.quant}, one sequence, {NUM_STEPS - NUM_WARM_STEPS} steps a round",
        "",
        "| layers on disk | on disk | in memory | disk, GB/s | predicted, tokens/s | measured | ratio | page cache |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        grown = max(0, result["cached_bytes_after"] - result["cached_bytes_before"])
        lines.append(
            f"| {result['num_layers']} ({100 * result['share']:.0f} %) | {result['disk_bytes'] // MIB:,} MiB "
            f"| {(result['weight_bytes'] + result['ring_bytes']) // MIB:,} MiB "
            f"| {result['disk_bytes_per_second'] / 1e9:.2f} | {result['predicted']:.2f} | {result['measured']:.2f} "
            f"| {result['measured'] / result['predicted']:.2f} | +{grown} B |"
        )
    worst = max(abs(result["measured"] / result["predicted"] - 1) for result in results)
    return "\n".join([*lines, "", f"farthest from the prediction: {100 * worst:.0f} %"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quant", choices=["bf16", "int8", "int4", "nf4"], default="int8")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--offload-dir", type=Path, help="where to pack (a temporary directory beside the checkpoint)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there too")
    parser.add_argument("--once", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once is not None:
        print(json.dumps(measure_once(arguments.checkpoint, arguments.quant, arguments.once, arguments.offload_dir)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.offload_dir or arguments.checkpoint.resolve().parent) as name:
        in_process(arguments, arguments.shares[0], Path(name))  # packs
        results = [
            in_process(arguments, share, Path(name)) for share in arguments.shares for _ in range(arguments.rounds)
        ]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    print(report(arguments, results))


if __name__ == "__main__":
    main()
