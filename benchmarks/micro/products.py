"""Measures the matrix product kernels on one core beside that core's peak and read bandwidth, taken around them.

    python benchmarks/micro/products.py [--isa avx2] [--inputs 2048] [--outputs 4096]

Rows of the table are weight formats, columns numbers of activation rows. From 5 rows on, the figure is the share of the
dot-product peak (int8 for quantised formats, bf16 and f32 for their own), below it the weight bytes read per second.
Every figure, the peak too, is the best of several rounds, so that neighbours disturb it least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from openautoglm.native import _core
from openautoglm.units import GIB, MIB

FORMATS = (("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128), ("nf4", 64), ("bf16", 0), ("f32", 0))
ROWS = (1, 2, 4, 8, 12, 48, 96, 256)
FEW_ROWS = 4
ROUNDS = 6
LEAST_SECONDS = 0.02


def best_seconds(call: Callable[[int], None]) -> float:
    """Return the least seconds of one call, over rounds long enough to time."""
    repeat = 1
    while True:
        begin = time.perf_counter()
        call(repeat)
        if (elapsed := time.perf_counter() - begin) >= LEAST_SECONDS:
            break
        repeat = max(repeat * 2, int(repeat * LEAST_SECONDS / max(elapsed, 1e-6)))
    best = elapsed
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call(repeat)
        best = min(best, time.perf_counter() - begin)
    return best / repeat


def seconds_of(isa: str, matrix: _core.PackedMatrix, x: np.ndarray) -> float:
    out = np.zeros((len(x), matrix.n), dtype=np.float32)
    if matrix.format in {"bf16", "f32"}:
        return best_seconds(lambda repeat: _core.gemm_floats(isa, matrix, x, out, repeat=repeat))
    values, scales, sums = _core.quantize_rows(isa, x)
    return best_seconds(lambda repeat: _core.gemm_quantised(isa, matrix, values, scales, sums, out, repeat=repeat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="instruction set (default: the best)")
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=4096)
    arguments = parser.parse_args()
    isa = _core.selected_isa(arguments.isa)
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((arguments.outputs, arguments.inputs), dtype=np.float32)
    # Few rows read weights from memory: a copy larger than the last-level cache, one after the other, would measure
    # that; here the matrix is small enough to say what the kernel alone can do.
    print(f"{isa}: {arguments.outputs} x {arguments.inputs}, one core; read bandwidth over 2 MB pages "
          f"{_core.probe_read_bandwidth(1, 512 * MIB) / 1e9:.1f} GB/s")  # fmt: skip
    print(f"{'format':<10}{'GOPS peak':>10}" + "".join(f"{f'M={rows}':>12}" for rows in ROWS))
    for number, group in FORMATS:
        kind = {"bf16": "bf16", "f32": "f32"}.get(number, "int8")
        peak = max(_core.probe_peak(kind, 1, isa=isa) for _ in range(ROUNDS))
        matrix = _core.pack(number, group, weights)
        cells = []
        for rows in ROWS:
            x = rng.standard_normal((rows, arguments.inputs), dtype=np.float32)
            seconds = seconds_of(isa, matrix, x)
            operations = 2.0 * rows * arguments.outputs * arguments.inputs
            if rows <= FEW_ROWS:
                cells.append(f"{matrix.nbytes / seconds / GIB:>6.1f} GiB/s")
            else:
                cells.append(f"{operations / seconds / peak:>11.0%}" if peak else f"{'-':>11}")
        print(
            f"{number + (f'-g{group}' if group else ''):<10}{peak / 1e9:>10.0f}" + "".join(f" {cell}" for cell in cells)
        )


if __name__ == "__main__":
    main()
