"""tools/check_spills.py: finds the spills that a compiler really makes, and leaves arrays and clean loops alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_spills.py"

# N sums of eight lanes: sixteen registers hold eight of them with their inputs, but not twenty-four.
SUMS = """
#include <immintrin.h>
template <int N>
__attribute__((noinline)) void sums(const float* a, const float* b, long n, float* out) {
  __m256 acc[N];
#pragma GCC unroll 32
  for (int r = 0; r < N; ++r) acc[r] = _mm256_setzero_ps();
  for (long i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int r = 0; r < N; ++r)
      acc[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i * 8), _mm256_set1_ps(b[i * N + r]), acc[r]);
  }
#pragma GCC unroll 32
  for (int r = 0; r < N; ++r) _mm256_storeu_ps(out + r * 8, acc[r]);
}
"""
CLEAN = SUMS + "template void sums<8>(const float*, const float*, long, float*);"
SPILLING = SUMS + "template void sums<24>(const float*, const float*, long, float*);"

# The array is written through a pointer elsewhere and read at a place known only at run time.
ARRAY = """
#include <immintrin.h>
void fill(float*);
void look_up(const float* a, const int* places, long n, float* out) {
  alignas(32) float table[64];
  fill(table);
  __m256 acc = _mm256_setzero_ps();
  for (long i = 0; i < n; ++i)
    acc = _mm256_fmadd_ps(_mm256_loadu_ps(a + i * 8), _mm256_load_ps(table + places[i] * 8), acc);
  _mm256_storeu_ps(out, acc);
}
"""

# Many values live across a hot loop that itself needs few: the spills stand in the loop around it.
AROUND = """
#include <immintrin.h>
__attribute__((noinline)) void around(const float* a, long n, long rounds, float* out) {
  __m256 kept[14];
#pragma GCC unroll 14
  for (int r = 0; r < 14; ++r) kept[r] = _mm256_loadu_ps(out + r * 8);
  for (long round = 0; round < rounds; ++round) {
    __m256 sums[6];
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) sums[r] = _mm256_setzero_ps();
#pragma GCC unroll 0
    for (long i = 0; i < n; ++i) {
#pragma GCC unroll 6
      for (int r = 0; r < 6; ++r) sums[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i * 8), _mm256_set1_ps(a[r]), sums[r]);
    }
#pragma GCC unroll 14
    for (int r = 0; r < 14; ++r) kept[r] = _mm256_fmadd_ps(sums[r % 6], sums[(r + 1) % 6], kept[r]);
  }
#pragma GCC unroll 14
  for (int r = 0; r < 14; ++r) _mm256_storeu_ps(out + r * 8, kept[r]);
}
"""


def build(directory: Path, source: str) -> Path:
    path = directory / "sample.cpp"
    path.write_text(source)
    command = ["g++", "-O2", "-mavx2", "-mfma", "-std=c++20", "-c", str(path), "-o", str(path.with_suffix(".o"))]
    subprocess.run(command, check=True)
    return path.with_suffix(".o")


def check(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *options, path], capture_output=True, text=True, check=False)


def test_spilling_loop_is_named_with_its_lines(tmp_path: Path) -> None:
    outcome = check(build(tmp_path, SPILLING))
    assert outcome.returncode == 1
    assert "void sums<24>(float const*" in outcome.stderr
    assert "innermost loop at" in outcome.stderr
    assert "(%rsp)" in outcome.stderr
    assert "%ymm" in outcome.stderr


@pytest.mark.parametrize("source", [CLEAN, ARRAY], ids=["clean", "array"])
def test_loop_without_spills_passes(tmp_path: Path, source: str) -> None:
    outcome = check(build(tmp_path, source), "--no-budgets")
    assert outcome.returncode == 0, outcome.stderr
    assert "1 functions, 1 innermost hot loops" in outcome.stdout


def test_object_with_nothing_to_check_fails(tmp_path: Path) -> None:
    outcome = check(build(tmp_path, "int add(int a, int b) { return a + b; }"))
    assert outcome.returncode == 1
    assert "no loop with dot products found" in outcome.stderr


def test_budgets_bound_the_nest_and_must_fit_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    from check_spills import Budget, check_object

    path = build(tmp_path, AROUND)
    assert check_object(path, (), table=False) == []  # nothing in the innermost loop
    [problem] = check_object(path, (Budget(objects="sample", function="around", nest=0),), table=False)
    assert "all hot loops" in problem
    assert check_object(path, (Budget(objects="sample", function="around", nest=100),), table=False) == []
    [problem] = check_object(path, (Budget(objects="sample", function="renamed"),), table=False)
    assert "no function with a hot loop fits 'renamed'" in problem
    assert check_object(path, (Budget(objects="another", function="renamed"),), table=False) == []


def test_budget_allows_as_many_spills_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    from check_spills import Budget, check_object, measure
    from disassembly import read_functions

    path = build(tmp_path, SPILLING)
    [spills] = [found for function in read_functions(path) if (found := measure(function)) is not None]
    assert spills.most >= 9  # twenty-four sums in at most fifteen registers
    for allowed, good in ((spills.most, True), (spills.most - 1, False)):
        budget = Budget(objects="sample", function=r"\bsums<24>", innermost=allowed)
        assert (check_object(path, (budget,), table=False) == []) is good
