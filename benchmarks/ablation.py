"""What paging, prefix reuse and KV quantisation save in memory and cost in time: each on and off, in one table.

    python benchmarks/ablation.py [MODEL] [--rounds 3] [--concurrency 8] [--only "int8 KV" ...] [--note TEXT]

Runs the engine in this process over requests of mixed lengths, asked by as many clients as `--concurrency`, in rounds
in which both sides of a comparison follow each other. All answers are greedy; paging and prefix reuse must not change
a token of them (exit code 1), the int8 cache may, and the report says in how many places. Results go to
benchmarks/results/ as JSON and Markdown; they need a machine that does nothing else. Holds the model twice, with a
cache of bf16 and of int8, as far as `--only` asks for both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ablated.comparisons import COMPARISONS, MIXED, SHARED, Bench, ChangedError, Comparison, run_rounds
from ablated.report import markdown, summary
from ablated.workload import WorkloadShape, make_workload
from openautoglm.engine.assemble import OpenedEngine, open_engine, prepare
from openautoglm.engine.options import EngineOptions
from openautoglm.probe.cpu import probe_cpu
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal

RESULTS = Path(__file__).parent / "results"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    names = [comparison.name for comparison in COMPARISONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="a directory, a reference, or the embedded model")
    parser.add_argument("--quant", type=NumberFormat, default=NumberFormat.INT8, help="format of the weights")
    parser.add_argument("--threads", type=int, help="of the engine (the plan's choice)")
    parser.add_argument("--context", type=int, default=2048, metavar="TOKENS")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, nargs=2, default=(64, 1024), metavar=("LEAST", "MOST"))
    parser.add_argument("--shared", type=int, default=512, metavar="TOKENS", help="that prompts have in common")
    parser.add_argument("--own", type=int, nargs=2, default=(32, 256), metavar=("LEAST", "MOST"), help="after those")
    parser.add_argument("--max-tokens", type=int, default=256, help="what each request asks for at most")
    parser.add_argument("--answer", type=int, nargs=2, default=(16, 256), metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--label", default="", help="added to the names of the result files")
    parser.add_argument("--note", default="", help="a sentence for the report, such as what else was running")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def make_shapes(options: argparse.Namespace) -> dict[str, WorkloadShape]:
    """Return the workloads by name."""
    mixed = WorkloadShape(
        num_requests=options.requests,
        shared_tokens=0,
        own_prompt_tokens=tuple(options.prompt),
        max_tokens=options.max_tokens,
        answer_tokens=tuple(options.answer),
        seed=options.seed,
    )
    shared = WorkloadShape(
        num_requests=options.requests,
        shared_tokens=options.shared,
        own_prompt_tokens=tuple(options.own),
        max_tokens=options.max_tokens,
        answer_tokens=tuple(options.answer),
        seed=options.seed,
    )
    return {MIXED: mixed, SHARED: shared}


def open_model(options: argparse.Namespace, kv: NumberFormat) -> OpenedEngine:
    goal = Goal(
        context_tokens=options.context,
        concurrency=options.concurrency,
        quant=options.quant,
        kv=kv,
        num_threads=options.threads,
    )
    return open_engine(prepare(EngineOptions(model=options.model, goal=goal), to_run=True))


def make_bench(options: argparse.Namespace, comparisons: Sequence[Comparison], stack: ExitStack) -> Bench:
    """Load the model once for every format of the cache that is compared; `stack` closes it."""
    opened = {}
    for kv in sorted({side.kv for one in comparisons for side in (one.on, one.off)}):
        opened[kv] = open_model(options, kv)
        stack.callback(opened[kv].engine.close)
    vocab_size = next(iter(opened.values())).description.vocab_size
    shapes = make_shapes(options)
    workloads = {name: make_workload(shape, vocab_size) for name, shape in shapes.items()}
    return Bench(opened=opened, workloads=workloads, concurrency=options.concurrency)


def heading(options: argparse.Namespace, num_threads: int, num_rounds: int) -> list[str]:
    """Return the sentences above the tables: where, what, and over which work."""
    (least, most), (own_least, own_most), (short, long) = options.prompt, options.own, options.answer
    return [
        f"{datetime.now(UTC).date().isoformat()}, {probe_cpu().name}, {num_threads} threads, "
        f"{Path(options.model).name} with {options.quant} weights, context {options.context}, {num_rounds} interleaved "
        f"rounds. {options.note}".rstrip(),
        "",
        f"{options.requests} requests from {options.concurrency} clients, each asking again when its answer has ended. "
        f"Prompts of {least} to {most} tokens (log-uniform); for prefix reuse {options.shared} tokens that all have in "
        f"common and {own_least} to {own_most} of their own. Answers of {short} to {long} tokens, asked for with "
        f"max_tokens {options.max_tokens}; greedy, random token ids, seed {options.seed}.",
    ]


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    comparisons = [comparison for comparison in COMPARISONS if comparison.name in options.only]
    options.output.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).date().isoformat()
    stem = f"ablation-{Path(options.model).name}-{date}{'-' if options.label else ''}{options.label}"
    with ExitStack() as stack:
        bench = make_bench(options, comparisons, stack)
        num_threads = next(iter(bench.opened.values())).plan.num_threads
        try:
            for pairs in run_rounds(bench, comparisons, options.rounds):
                # Written as it grows, so that a run that is cut short has its figures.
                rows = summary(comparisons, pairs)
                num_rounds = max(map(len, pairs.values()))
                text = markdown(heading(options, num_threads, num_rounds), rows)
                document = {
                    "date": date,
                    "processor": probe_cpu().name,
                    "num_threads": num_threads,
                    "model": Path(options.model).name,
                    "quant": options.quant,
                    "context_tokens": options.context,
                    "concurrency": options.concurrency,
                    "note": options.note,
                    "workloads": {name: asdict(shape) for name, shape in make_shapes(options).items()},
                    "comparisons": rows,
                }
                (options.output / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
                (options.output / f"{stem}.md").write_text(text)
        except ChangedError as error:
            sys.exit(str(error))
    print(text)


if __name__ == "__main__":
    main()
