"""Measures what bounds an int8 kernel on one core: dot products, broadcasts, and both in the shapes of the kernels.

    python benchmarks/micro/rates.py [--rounds 20]

Each line of the table is a loop of 24 VPDPBUSD (or as many broadcasts) on registers and one cached line of memory:
cycles of a pass, its loads, and the rate as a share of the dot products' own. "A broadcast for each row" loads four
activations into a register that two (32 outputs) or four (64 outputs) dot products use; "in the dot product" is the
instruction's own memory operand, a load each. Sums are checked against a plain loop before anything is timed. Needs
AVX-512 VNNI and g++; cycles are told from a chain of multiplications in the same rounds.
"""

from __future__ import annotations

import argparse

from compiled import require_avx512, run_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of which the best counts (20)")
    arguments = parser.parse_args()
    require_avx512()
    run_source("rates.cpp", str(arguments.rounds))


if __name__ == "__main__":
    main()
