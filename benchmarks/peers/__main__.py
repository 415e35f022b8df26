"""Compares this engine with others: makes the checkpoint, converts it, installs the peers, runs, writes a table.

    PYTHONPATH=benchmarks python -m peers --shape tinyllama-1.1b --rounds 3
    PYTHONPATH=benchmarks python -m peers --prepare            only install and convert
    PYTHONPATH=benchmarks python -m peers --only llama.cpp openautoglm --rounds 1 --label smoke

Run it with an interpreter that has openautoglm with its `test` extra. Peers come from the package index into virtual
environments of their own in the cache directory, where checkpoints and conversions are kept too (10 GB and more);
nothing is read from a model hub. A result in benchmarks/results/ needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from openautoglm.families.registry import describe
from openautoglm.probe.cpu import probe_cpu
from peers.protocol import Job
from peers.report import compare, raw_rounds, rounds_from_raw, summary
from peers.rounds import Contender, Round, prepare, run_round
from peers.shapes import DEFAULT_SHAPE, ROOT, SOURCES, Shape, prepare_shape
from peers.table import markdown
from peers.variants import OURS, VARIANTS, Variant

RESULTS = ROOT / "benchmarks" / "results"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openautoglm-peers"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SOURCES, default=DEFAULT_SHAPE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose names begin so")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="rows to leave out")
    parser.add_argument("--threads", type=int, default=probe_cpu().num_cores)
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--prompt", type=int, default=128, metavar="TOKENS", help="prompts of decoding sequences")
    parser.add_argument("--new", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--repetitions", type=int, default=3, help="prompts of a round, besides a first one")
    parser.add_argument("--prepare", action="store_true", help="install and convert, and run nothing")
    parser.add_argument("--resume", action="store_true", help="add to the rounds of a run of today that was cut short")
    parser.add_argument("--label", default="", help="added to the names of the result files")
    parser.add_argument("--note", default="", help="a sentence for the table, such as what else was running")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def select(only: Sequence[str] | None, without: Sequence[str]) -> list[Variant]:
    """Return the rows to measure. Exits if a name fits none."""
    for prefix in [*(only or ()), *without]:
        if not any(variant.name.startswith(prefix) for variant in VARIANTS):
            sys.exit(f"no row begins with {prefix!r}: there are {', '.join(variant.name for variant in VARIANTS)}")
    return [
        variant
        for variant in VARIANTS
        if (only is None or variant.name.startswith(tuple(only))) and not variant.name.startswith(tuple(without))
    ]


def make_job(options: argparse.Namespace, shape: Shape) -> Job:
    """Return the job that all workers share; model and options are filled in for each."""
    return Job(
        model="",
        vocab_size=int(str(shape.config()["vocab_size"])),
        num_threads=options.threads,
        prefill_tokens=options.prefill,
        decode_prompt_tokens=options.prompt,
        decode_new_tokens=options.new,
        decode_batches=tuple(options.batches),
        repetitions=options.repetitions,
        options={},
    )


def result_file(options: argparse.Namespace, shape: Shape) -> Path:
    """Return where today's JSON lies; the Markdown lies beside it."""
    stem = f"peers-{shape.name}-{datetime.now(UTC).date().isoformat()}{'-' if options.label else ''}{options.label}"
    target: Path = options.output / f"{stem}.json"
    return target


def plain_job(job: Job) -> dict[str, object]:
    """Return what all workers share, as JSON gives it back."""
    fields = {key: value for key, value in asdict(job).items() if key not in ("model", "options")}
    plain: dict[str, object] = json.loads(json.dumps(fields))
    return plain


def earlier_rounds(options: argparse.Namespace, shape: Shape, job: Job) -> list[Round]:
    """Return the rounds to add to: none without --resume. Exits where they measured something else."""
    source = result_file(options, shape)
    if not options.resume:
        return []
    if not source.exists():
        sys.exit(f"there is no {source} to add to: leave --resume out")
    document = json.loads(source.read_text())
    if document["job"] != plain_job(job):
        sys.exit(f"{source} measured {document['job']}, this is {plain_job(job)}: use the same options")
    return rounds_from_raw(document["rounds"])


def write_report(
    options: argparse.Namespace,
    shape: Shape,
    job: Job,
    contenders: Sequence[Contender],
    rounds: Sequence[Round],
    failures: dict[str, str],
) -> Path:
    """Write JSON and Markdown; return the Markdown's path."""
    spec = describe(shape.config())
    date = datetime.now(UTC).date().isoformat()
    heading = {"shape": shape.name, "date": date, "processor": probe_cpu().name, "note": options.note}
    rows = summary(rounds, contenders, spec, job)
    comparisons = compare(rounds, [contender.variant for contender in contenders], job)
    document = {
        **heading,
        "job": plain_job(job),
        "variants": rows,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "left_out": failures,
        "rounds": raw_rounds(rounds),
    }
    source = result_file(options, shape)
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(json.dumps(document, indent=1) + "\n")
    target = source.with_suffix(".md")
    target.write_text(markdown(heading, rows, comparisons, rounds, job, failures))
    return target


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    variants = select(options.only, options.without)
    shape = prepare_shape(options.shape, options.cache)
    job = make_job(options, shape)
    contenders, failures = prepare(variants, shape, job, options.cache)
    if options.prepare:
        print("\n".join(contender.variant.name for contender in contenders))
        sys.exit(1 if failures else 0)
    if not contenders:
        sys.exit("nothing to run")
    rounds = earlier_rounds(options, shape, job)
    for index in range(len(rounds), len(rounds) + options.rounds):
        finished = tuple(rounds)
        for growing in run_round(contenders, index, failures):
            rounds = [*finished, growing]
            target = write_report(options, shape, job, contenders, rounds, failures)
    if not rounds:
        sys.exit("nothing was measured: --rounds must be at least 1")
    print(target.read_text())
    if any(name.startswith(OURS) for name in failures):
        sys.exit(1)


if __name__ == "__main__":
    main()
