"""A cell measured from outside, and the bars that it has to meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from accuracy.shapes import ROOT, Cell, make_checkpoint
from openautoglm.probe.process_memory import measure_process_memory

EXACT_SHARE = 0.01
PEAK_SHARE = 0.05
PEAK_SLACK_BYTES = 48 << 20
SAMPLE_SECONDS = 0.03
MIB = 1 << 20


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Measure a cell in a fresh process, watching its whole tree from outside; return the row of the report."""
    directory = make_checkpoint(cell.shape, work)
    command = [sys.executable, str(Path(__file__).with_name("load.py")), str(directory), cell.weights, cell.kv]
    command += [str(cell.context_tokens), str(cell.concurrency)]
    # The package itself comes from wherever this process has it: installed, or on the path that it was given.
    paths = [str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    tree_peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            tree_peak = max(tree_peak, measure_process_memory(process.pid).pss_bytes)
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"{cell.key} failed with exit code {process.returncode}")
    row: dict[str, Any] = json.loads(answer)
    # The process's own high water holds what came and went between two samples; the tree's, the others beside it.
    row["measured"]["peak"] = max(tree_peak, row["measured"]["peak"])
    row["missed"] = judge(row)
    return row


def judge(row: dict[str, Any]) -> list[str]:
    """Return the bars that a row misses: each component alone, then the peak."""
    planned, measured = row["planned"], row["measured"]
    missed = []
    if row["num_blocks"] != row["expected_blocks"]:
        missed.append(f"{row['num_blocks']} blocks instead of {row['expected_blocks']}")
    pairs = [(name, planned[name], measured[name]) for name in ("weights", "kv", "workspace")]
    pairs += [(name, row["planned_parts"].get(name, 0), size) for name, size in row["measured_parts"].items()]
    for name, planned_bytes, measured_bytes in pairs:
        if abs(planned_bytes - measured_bytes) > EXACT_SHARE * measured_bytes:
            missed.append(f"{name}: {planned_bytes:,} bytes planned, {measured_bytes:,} measured")
    for name in ("runtime", "peak"):
        short = measured[name] - planned[name]
        if short > 0:
            missed.append(f"{name} {short / MIB:.1f} MiB below the measured one")
    excess = planned["peak"] - measured["peak"]
    if excess > max(PEAK_SHARE * measured["peak"], PEAK_SLACK_BYTES):
        missed.append(f"peak {excess / MIB:.1f} MiB above the measured one")
    return missed
