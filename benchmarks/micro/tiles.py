"""Measures which tile of an int8 product is better: 12 rows x 32 outputs or 6 rows x 64 outputs.

    python benchmarks/micro/tiles.py [--rows 96] [--outputs 1024] [--inputs 4096] [--rounds 20]

Both keep 24 sums in registers; per four inputs the first loads two lines of weights and twelve broadcasts, the second
four and six. Weights and activations are packed beforehand, 16 KiB of weights serve all panels of rows, and every 128
inputs are flushed into fp32 sums in memory, as the kernels do; so the share of the peak says what panels, loads and
flushes cost together. Every output is checked against a plain loop first. Needs AVX-512 VNNI and g++.
"""

from __future__ import annotations

import argparse

from compiled import require_avx512, run_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="rows of activations, a multiple of 12 (96)")
    parser.add_argument("--outputs", type=int, default=1024, help="a multiple of 64 (1024)")
    parser.add_argument("--inputs", type=int, default=4096, help="a multiple of 128 (4096)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of which the best counts (20)")
    arguments = parser.parse_args()
    require_avx512()
    run_source("tiles.cpp", *map(str, (arguments.rows, arguments.outputs, arguments.inputs, arguments.rounds)))


if __name__ == "__main__":
    main()
