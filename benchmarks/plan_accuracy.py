"""How close plans come: planned against measured bytes, each load in a fresh process with its KV pool fully touched.

    python benchmarks/plan_accuracy.py --seconds 170        (again and again, until nothing is left to do)
    python benchmarks/plan_accuracy.py --every 9            (a part of the matrix: each 9th cell, of all shapes)
    python benchmarks/plan_accuracy.py --whole              (published shapes as they are, few settings)

The matrix: 8 shapes x 4 weight formats x 2 KV formats x 3 contexts x 3 concurrencies, 576 cells. Checkpoints of random
weights are made in --work-dir, where the rows are kept too, so that a run may stop and go on. Bars: blocks as many as
context times concurrency implies; weights, KV cache, workspace and each of their parts within 1 %; the predicted peak
within max(5 %, 48 MiB) of the measured one; neither it nor the runtime's ever below. Results go to benchmarks/results/;
the exit code is 1 if a bar is missed, 2 if cells are left. Needs 3 GiB of disk and 2 GiB of memory, 6 for --whole.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from accuracy.judge import run_cell
from accuracy.report import add_row, read_rows, write_report
from accuracy.shapes import ROOT, matrix_cells, whole_cells
from openautoglm.probe.cpu import probe_cpu

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="published shapes as they are")
    parser.add_argument("--every", type=int, default=1, help="measure each Nth cell")
    parser.add_argument("--seconds", type=float, help="start no cell after so many seconds")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "plan_accuracy")
    options = parser.parse_args()
    cells, name = (whole_cells(), "plan_accuracy_whole") if options.whole else (matrix_cells(), "plan_accuracy")
    file = options.work_dir / f"{name}.jsonl"
    if options.every > 1:
        cells, name = cells[:: options.every], f"{name}_every_{options.every}"
    rows = read_rows(file)
    started = time.monotonic()
    for cell in cells:
        if cell.key in rows:
            continue
        if options.seconds is not None and time.monotonic() - started > options.seconds:
            break
        rows[cell.key] = run_cell(cell, options.work_dir)
        add_row(file, cell.key, rows[cell.key])
        if rows[cell.key]["missed"]:
            print(cell.key, rows[cell.key]["missed"], file=sys.stderr)
    num_left = sum(cell.key not in rows for cell in cells)
    print(f"{len(cells) - num_left} of {len(cells)} cells", file=sys.stderr)
    if num_left:
        sys.exit(2)
    write_report(cells, rows, probe_cpu().name, RESULTS, name)
    sys.exit(1 if any(rows[cell.key]["missed"] for cell in cells) else 0)


if __name__ == "__main__":
    main()
