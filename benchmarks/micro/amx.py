"""Measures what bounds an int8 kernel on AMX on one core: its products, loads and stores, alone and mixed.

    python benchmarks/micro/amx.py [--rounds 20]

Each line of the table is a loop, with the cycles of a pass. Where one takes as long as its parts together, these do not
overlap. The last two compute the same sums of 32 rows, 32 outputs and 128 inputs and store them: in four registers that
are all busy until they have been stored, and in two pairs of which one is stored while the other sums; these sums are
checked before anything is timed. Needs AMX INT8, AVX-512 and g++; cycles are told from a chain of multiplications.
"""

from __future__ import annotations

import argparse

from compiled import AMX_FEATURES, require_avx512, run_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of which the best counts (20)")
    arguments = parser.parse_args()
    require_avx512(AMX_FEATURES)
    run_source("amx.cpp", str(arguments.rounds))


if __name__ == "__main__":
    main()
