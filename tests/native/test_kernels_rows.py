"""Quantisation of activations, norms, element-wise kernels and reductions: the same bytes on every set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.native import _core

from . import oracles

ISAS = _core.available_isas()
LENGTHS = [1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 255, 640, 1001]


def floats(shape, seed=0, spread=1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) * spread).astype(np.float32)


def same_on_every_set(call) -> np.ndarray:
    results = [np.asarray(call(isa)) for isa in ISAS]
    assert len({result.tobytes() for result in results}) == 1
    return results[0]


@given(rows=st.integers(1, 5), k=st.sampled_from(LENGTHS), seed=st.integers(0, 99), per_token=st.booleans())
@settings(max_examples=60, deadline=None)
def test_quantised_activations_are_those_of_numpy(rows, k, seed, per_token):
    x = floats((rows, k), seed) * np.float32(10.0) ** np.random.default_rng(seed).integers(-30, 30, (rows, 1))
    x = x.astype(np.float32)
    x[:, :: 7 + seed % 5] *= 50  # outliers
    for isa in ISAS:
        for found, expected in zip(
            _core.quantize_rows(isa, x, per_token), oracles.quantise_activations(x, per_token=per_token), strict=True
        ):
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_give_a_nan_scale(isa, per_token, value):
    x = floats((3, 300))
    x[1, 299] = value
    values, scales, sums = _core.quantize_rows(isa, x, per_token)
    assert np.isnan(scales[1]).tolist() == ([True] * 3 if per_token else [False, False, True])
    assert np.isfinite(scales[[0, 2]]).all()
    assert not values[1, 256:].any()
    assert not sums[1, 8:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-37])
def test_values_too_small_to_scale_are_zeros(isa, value):
    values, scales, sums = _core.quantize_rows(isa, np.full((1, 130), value, np.float32))
    assert not values.any()
    assert not scales.any()
    assert not sums.any()


def test_halves_round_to_even():
    x = np.zeros((1, 128), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -3.5]
    for isa in ISAS:
        assert _core.quantize_rows(isa, x)[0][0, :6].tolist() == [127, 0, 2, 2, 0, -4]


@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm(n):
    x, weight = floats(n, 1, 3.0), floats(n, 2)
    found = same_on_every_set(lambda isa: _core.rms_norm(isa, x, weight, 1.0, 1e-5))[0]
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide * wide) + 1e-5) * (weight + 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("half", [1, 8, 16, 19, 32, 64])
def test_rotary(half):
    head, angle = floats(2 * half + 6, half), floats(half, 5, 3.0)
    cos, sin = np.cos(angle), np.sin(angle)

    def rotate(isa):
        copy = head.copy()
        _core.rotary(isa, copy, cos, sin)
        return copy

    found = same_on_every_set(rotate)
    x, y = head[:half].astype(np.float64), head[half : 2 * half].astype(np.float64)
    expected = np.concatenate([x * cos - y * sin, y * cos + x * sin, head[2 * half :]])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", LENGTHS)
def test_add_scale_and_max(n):
    x, y = floats(n, 3), floats(n, 4)

    def combine(isa):
        copy = x.copy()
        _core.add(isa, copy, y)
        _core.scale(isa, copy, 0.3)
        return copy

    np.testing.assert_array_equal(same_on_every_set(combine), (x + y) * np.float32(0.3))
    assert same_on_every_set(lambda isa: _core.max_value(isa, x)) == x.max()
    negative = -np.abs(x) - 1
    assert same_on_every_set(lambda isa: _core.max_value(isa, negative)) == negative.max()


@pytest.mark.parametrize("n", LENGTHS)
def test_sum_exp(n):
    x = floats(n, 6, 8.0)
    found = same_on_every_set(lambda isa: _core.sum_exp(isa, x, float(x.max())))
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64) - x.max()).sum(), rtol=1e-6)


def test_exponential_over_its_range():
    points = np.concatenate([np.linspace(-85.9, 88.3, 2001), np.linspace(-1e-3, 1e-3, 101)]).astype(np.float32)
    for isa in ISAS:
        found = np.array([_core.sum_exp(isa, points[i : i + 1], 0.0) for i in range(len(points))])
        np.testing.assert_allclose(found, np.exp(points.astype(np.float64)), rtol=2.5e-7)
        special = [_core.sum_exp(isa, np.array([v], np.float32), 0.0) for v in (-np.inf, -200.0, -87.0, 0.0)]
        assert special == [0.0, 0.0, 0.0, 1.0]
        assert np.isnan(_core.sum_exp(isa, np.array([np.nan], np.float32), 0.0))


def test_probes_measure_something():
    best = _core.selected_isa()
    assert best == ISAS[-1]
    for isa in ISAS:
        assert _core.probe_peak("int8", 1, 0.005, isa) > 1e8
        assert _core.probe_peak("f32", 1, 0.005, isa) > 1e8
        assert (_core.probe_peak("bf16", 1, 0.005, isa) > 0) == (isa in {"avx512bf16", "amx"})
    assert _core.probe_read_bandwidth(2, 8 << 20, True, 1) > 1e8
    with pytest.raises(ValueError, match="int8, bf16 or f32"):
        _core.probe_peak("fp8", 1)
