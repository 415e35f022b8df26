"""A soak's verdict: a leak is seen, scatter is none."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from soak import fit_growth

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
REQUESTS = range(5_000, 20_001, 500)


def scattered(seed: int, *, leak_bytes: float, noise_bytes: float) -> list[int]:
    draw = random.Random(seed)
    return [int(100 * MIB + leak_bytes * number + draw.uniform(0, noise_bytes)) for number in REQUESTS]


def test_the_line_is_the_least_squares_one():
    growth = fit_growth([0, 1, 2, 3], [10, 21, 29, 40])
    # By hand: slope 98/10 around (1.5, 25), residuals -0.3, 0.9, -0.9, 0.3.
    assert growth.bytes_per_request == pytest.approx(9.8)
    assert growth.error_bytes_per_request == pytest.approx((1.8 / 2 / 5) ** 0.5)
    assert growth.growth_bytes == pytest.approx(29.4)
    assert growth.noise_bytes == pytest.approx(1.8)


@pytest.mark.parametrize("seed", range(20))
def test_scatter_is_no_growth(seed: int):
    assert not fit_growth(REQUESTS, scattered(seed, leak_bytes=0, noise_bytes=4 * MIB)).grows


@pytest.mark.parametrize("seed", range(20))
def test_half_a_kilobyte_a_request_is_found_in_scatter(seed: int):
    assert fit_growth(REQUESTS, scattered(seed, leak_bytes=512, noise_bytes=4 * MIB)).grows


def test_two_rounds_have_no_error():
    with pytest.raises(ValueError, match="3 rounds or more"):
        fit_growth([1, 2], [3, 4])


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_twenty_thousand_requests():
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "soak.py")], check=True)
