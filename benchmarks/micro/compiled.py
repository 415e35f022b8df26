"""Compiles a C++ file that stands beside it and runs it: what the microbenchmarks share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno")
AVX512_FLAGS = (
    *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    "-mprefer-vector-width=512",
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12's AVX-512 headers warn about themselves
)
AVX512_FEATURES = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})
AMX_FEATURES = frozenset({"amx_tile", "amx_int8"})


def require_avx512(more: frozenset[str] = frozenset()) -> None:
    """Leave with a message unless this processor has the instructions that are measured, `more` beside AVX-512."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    if missing := (AVX512_FEATURES | more) - set(flags.split()):
        sys.exit(f"this processor has no {', '.join(sorted(missing))}: there is nothing to measure")


def run_source(name: str, *arguments: str) -> None:
    """Compile `name` beside this file in a temporary directory and run it; leave with its status if it fails."""
    if shutil.which("g++") is None:
        sys.exit("g++ is missing: apt-get install g++")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "program"
        source = Path(__file__).with_name(name)
        for command in (["g++", *FLAGS, *AVX512_FLAGS, str(source), "-o", str(program)], [str(program), *arguments]):
            if status := subprocess.run(command, check=False).returncode:
                sys.exit(status)
