"""How close plans come: planned against measured bytes, each load in a fresh process with its KV pool fully touched.

    python benchmarks/plan_accuracy.py [--shapes glm-edge-1.5b-chat ...] [--quants int8 ...] [--work-dir DIR]

Makes checkpoints of random weights in published shapes (tools/make_checkpoint.py), loads each at each format, runs a
step of the largest size that the plan allows, and compares. Bars: weights and KV cache within 1 % each; the predicted
peak within max(5 %, 48 MiB) of the measured one and never below it. Results go to benchmarks/results/ as JSON and
Markdown; the exit code is 1 if a bar is missed. Needs some 5 GiB of disk and 6 GiB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Name of the published shape, layers (None: all of them). Together 0.2 to 1.5 billion parameters.
SHAPES: dict[str, tuple[str, int | None]] = {
    "glm-edge-1-layer": ("glm-edge-1.5b-chat", 1),
    "Qwen2.5-0.5B": ("Qwen2.5-0.5B", None),
    "Qwen3-0.6B": ("Qwen3-0.6B", None),
    "Llama-3.2-1B": ("Llama-3.2-1B", None),
    "glm-edge-1.5b": ("glm-edge-1.5b-chat", None),
}
QUANTS = ("bf16", "int8", "int4")
CONTEXT_TOKENS = 1024
CONCURRENCY = 4
EXACT_SHARE = 0.01
PEAK_SHARE = 0.05
PEAK_SLACK_BYTES = 48 << 20
SAMPLE_SECONDS = 0.05
MIB = 1 << 20


def measure(directory: str, quant: str) -> dict[str, int]:
    """Load, touch and step in this process; return planned and measured bytes."""
    from openautoglm.engine.assemble import open_engine, prepare
    from openautoglm.engine.options import EngineOptions
    from openautoglm.probe.process_memory import measure_process_memory, peak_resident_bytes
    from openautoglm.spec.formats import NumberFormat
    from openautoglm.spec.goal import Goal

    goal = Goal(quant=NumberFormat(quant), context_tokens=CONTEXT_TOKENS, concurrency=CONCURRENCY)
    before = measure_process_memory().pss_bytes
    opened = open_engine(prepare(EngineOptions(model=directory, goal=goal, cache="off")))
    plan, executor = opened.plan, opened.executor
    executor.touch()
    run_largest_step(opened)
    planned = plan.breakdown
    return {
        "num_parameters": plan.num_parameters,
        "planned_weight_bytes": planned.weight_bytes,
        "planned_kv_bytes": planned.kv_bytes,
        "planned_workspace_bytes": planned.workspace_bytes,
        "planned_runtime_bytes": planned.runtime_bytes,
        "planned_peak_bytes": planned.peak_bytes,
        "weight_bytes": executor.weight_bytes,
        "kv_bytes": executor.kv_bytes,
        "workspace_bytes": executor.workspace_bytes,
        "import_bytes": before,
        "resident_bytes": measure_process_memory().pss_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    }


def run_largest_step(opened: object) -> None:
    """Fill every sequence to its context, `max_step_tokens` at a time, sampling with all that costs memory."""
    import numpy as np

    from openautoglm.bench.batches import Row, random_step
    from openautoglm.engine.assemble import OpenedEngine

    assert isinstance(opened, OpenedEngine)
    plan, vocab_size = opened.plan, opened.executor.layout().vocab_size
    blocks_each = plan.num_blocks // plan.concurrency
    chunk = min(plan.context_tokens, plan.max_step_tokens // plan.concurrency)
    rows = [
        Row(
            blocks=tuple(range(index * blocks_each, (index + 1) * blocks_each)),
            num_cached=plan.context_tokens - chunk,
            num_new=chunk,
        )
        for index in range(plan.concurrency)
    ]
    step = random_step(rows, vocab_size=vocab_size, seed=1, sample=True)
    assert step.sample is not None
    history = plan.context_tokens
    sample = replace(
        step.sample,
        temperatures=np.ones(len(rows), dtype=np.float32),
        top_ps=np.full(len(rows), 0.9, dtype=np.float32),
        repetition_penalties=np.full(len(rows), 1.1, dtype=np.float32),
        num_logprobs=np.full(len(rows), 20, dtype=np.int32),
        history_offsets=np.arange(0, (len(rows) + 1) * history, history, dtype=np.int32),
        history_tokens=np.arange(len(rows) * history, dtype=np.int32) % vocab_size,
        history_prompt_lengths=np.full(len(rows), history // 2, dtype=np.int32),
    )
    opened.executor.submit(replace(step, sample=sample)).result()


def run_worker(directory: Path, quant: str) -> dict[str, int]:
    """Measure in a fresh process, watching its whole tree from outside."""
    from openautoglm.probe.process_memory import measure_process_memory

    command = [sys.executable, __file__, "--worker", str(directory), quant]
    tree_peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            tree_peak = max(tree_peak, measure_process_memory(process.pid).pss_bytes)
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"{directory.name} at {quant} failed with exit code {process.returncode}")
    measured: dict[str, int] = json.loads(answer)
    return {**measured, "tree_peak_bytes": max(tree_peak, measured["peak_resident_bytes"])}


def judge(row: dict[str, object]) -> list[str]:
    """Return the bars that a row misses."""
    missed = []
    for name in ("weight", "kv"):
        planned, measured = int(str(row[f"planned_{name}_bytes"])), int(str(row[f"{name}_bytes"]))
        if abs(planned - measured) > EXACT_SHARE * measured:
            missed.append(f"{name} {100 * (planned / measured - 1):+.2f} %")
    planned, measured = int(str(row["planned_peak_bytes"])), int(str(row["tree_peak_bytes"]))
    if planned < measured:
        missed.append(f"peak {(measured - planned) / MIB:.1f} MiB below the measured one")
    if planned - measured > max(PEAK_SHARE * measured, PEAK_SLACK_BYTES):
        missed.append(f"peak {(planned - measured) / MIB:.1f} MiB above the measured one")
    return missed


def make_checkpoint(name: str, directory: Path) -> Path:
    source, layers = SHAPES[name]
    command = [sys.executable, str(ROOT / "tools" / "make_checkpoint.py"), name, "--shape-from", source]
    command += ["--output", str(directory)] + ([] if layers is None else ["--layers", str(layers)])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return directory / name


def markdown(report: dict[str, object], rows: list[dict[str, object]]) -> str:
    """Return the table for people."""
    lines = [
        "# Plan accuracy",
        "",
        f"{report['date']}, {report['processor']}, {CONCURRENCY} sequences of {CONTEXT_TOKENS} tokens, pool fully "
        "touched, a step of the largest size. Bytes in MiB; the peak is that of the process tree.",
        "",
        "| shape | parameters | format | weights, planned | measured | KV, planned | measured | peak, planned "
        "| measured | difference | bars |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [int(str(row[f"{name}_bytes"])) / MIB for name in _COLUMNS]
        difference = f"{figures[-2] - figures[-1]:+.1f}"
        missed = row["missed"] or ["met"]
        assert isinstance(missed, list)
        cells = [str(row["shape"]), f"{int(str(row['num_parameters'])) / 1e9:.2f} B", str(row["quant"])]
        cells += [f"{figure:,.1f}" for figure in figures] + [difference, "; ".join(missed)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_COLUMNS = ("planned_weight", "weight", "planned_kv", "kv", "planned_peak", "tree_peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--quants", nargs="+", choices=QUANTS, default=list(QUANTS))
    parser.add_argument("--work-dir", type=Path, help="where checkpoints are made (a temporary directory)")
    parser.add_argument("--worker", nargs=2, metavar=("DIRECTORY", "QUANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    rows: list[dict[str, object]] = []
    for name in options.shapes:
        with tempfile.TemporaryDirectory(dir=options.work_dir) as directory:
            checkpoint = make_checkpoint(name, Path(directory))
            for quant in options.quants:
                row: dict[str, object] = {"shape": name, "quant": quant, **run_worker(checkpoint, quant)}
                row["missed"] = judge(row)
                rows.append(row)
                print(name, quant, row["missed"] or "met", file=sys.stderr)
    from openautoglm.probe.cpu import probe_cpu

    report: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": probe_cpu().name,
        "context_tokens": CONTEXT_TOKENS,
        "concurrency": CONCURRENCY,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "plan_accuracy.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "plan_accuracy.md").write_text(markdown(report, rows))
    sys.exit(1 if any(row["missed"] for row in rows) else 0)


if __name__ == "__main__":
    main()
