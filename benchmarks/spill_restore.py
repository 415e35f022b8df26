"""Times what a choice that was set back waits for: its blocks from a tier, or the same tokens computed again.

    python benchmarks/spill_restore.py [MODEL] [--quant int8] [--kv bf16] [--tokens 128 512 1024] [--directory DIR]

A choice computes its prompt and one token and is set back; every place in the pool is then used for something else.
"Give up" is what that takes, writing included; "go on" the steps to its next token. Kinds take turns within a round;
the table has medians of the rounds, and the median ratio to computing again within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from openautoglm.engine.assemble import OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.options import EngineOptions
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import GIB

KINDS = ("again", "memory", "disk")


def opened(arguments: argparse.Namespace, kind: str) -> OpenedEngine:
    tiers = {
        "again": SpillTiers(),
        "memory": SpillTiers(memory_bytes=GIB),
        "disk": SpillTiers(disk_bytes=GIB, directory=str(arguments.directory)),
    }
    goal = Goal(
        context_tokens=2 * max(arguments.tokens),
        concurrency=2,
        quant=NumberFormat(arguments.quant),
        kv=NumberFormat(arguments.kv),
        spill=tiers[kind],
    )
    return open_engine(prepare(EngineOptions(model=arguments.model, goal=goal), to_run=True))


def once(opened: OpenedEngine, name: str, num_tokens: int) -> tuple[float, float]:
    """Return the seconds of giving the blocks up and of going on."""
    engine = opened.engine
    prompt = tuple((hash((name, at)) & 0x7FFFFFFF) % 1000 for at in range(num_tokens))
    sampling = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    engine.add(GenerationRequest(request_id=name, prompt_tokens=prompt, sampling=sampling))
    while not engine.step():
        pass
    begin = time.perf_counter()
    engine.scheduler.preempt_last()
    engine.pool.drop_cached()
    given_up = time.perf_counter()
    while not engine.step():
        pass
    end = time.perf_counter()
    while engine.has_work:
        engine.step()
    engine.pool.drop_cached()
    return given_up - begin, end - given_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--quant", choices=["bf16", "int8", "int4"], default="int8")
    parser.add_argument("--kv", choices=["bf16", "int8", "fp8"], default="bf16")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--directory", type=Path, default=Path("build/spill"))
    arguments = parser.parse_args()
    engines = {kind: opened(arguments, kind) for kind in KINDS}
    block_bytes = sum(group.block_bytes for group in engines["again"].executor.layout().groups)
    print(f"{arguments.model}, {arguments.quant} weights, {arguments.kv} cache, {block_bytes} bytes a block")
    print(f"{'tokens':>8}{'kind':>8}{'give up':>12}{'go on':>12}{'both':>12}{'ratio':>8}")
    for num_tokens in arguments.tokens:
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for number in range(arguments.rounds + 2):
            for kind in KINDS:
                seconds = once(engines[kind], f"{kind}{num_tokens}-{number}", num_tokens)
                if number >= 2:
                    times[kind].append(seconds)
        for kind in KINDS:
            away, back = (statistics.median(part) for part in zip(*times[kind], strict=True))
            pairs = zip(times["again"], times[kind], strict=True)
            ratio = statistics.median(sum(again) / sum(other) for again, other in pairs)
            milliseconds = (away * 1e3, back * 1e3, (away + back) * 1e3)
            print(
                f"{num_tokens:>8}{kind:>8}" + "".join(f"{value:>9.2f} ms" for value in milliseconds) + f"{ratio:>7.2f}x"
            )
    for engine in engines.values():
        engine.engine.close()


if __name__ == "__main__":
    main()
