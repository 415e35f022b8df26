"""Matrix products: against float64, bit for bit across sets, rows and ranges."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.native import _core

from . import oracles

ISAS = _core.available_isas()
INTEGER = [("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128), ("nf4", 32), ("nf4", 64), ("nf4", 128)]
FORMATS = [("f32", 0), ("bf16", 0), *INTEGER]
ROWS = [*range(1, 18), 31, 32, 33, 47, 48, 49, 97, 257]
OUTPUTS = [1, 2, 3, 5, 7, 13, 16, 17, 31, 32, 33, 47, 61, 64, 65, 97, 113, 127, 128, 129]
INPUTS = [1, 2, 3, 31, 127, 128, 129, 255, 257, 384, 500]


@cache
def matrix(number: str, group: int, n: int, k: int) -> tuple[_core.PackedMatrix, np.ndarray]:
    """A packed random matrix and its dequantised weights in float64."""
    weights = (np.random.default_rng(n * 1000 + k).standard_normal((n, k)) * 0.1).astype(np.float32)
    packed = _core.pack(number, group, weights)
    if number == "f32":
        return packed, weights.astype(np.float64)
    if number == "bf16":
        return packed, oracles.bf16_floats(oracles.bf16_bits(weights)).astype(np.float64)
    return packed, oracles.decode(packed.tobytes(), number, n, k, group).weights(k)


def inputs(m: int, k: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((m, k)) * generator.choice([0.01, 1.0, 30.0], (m, 1))).astype(np.float32)


def product(isa, packed, x, *, per_token=False, out=None, **options) -> np.ndarray:
    out = np.full((x.shape[0], packed.n), np.nan, np.float32) if out is None else out
    if packed.format in ("f32", "bf16"):
        _core.gemm_floats(isa, packed, x, out, **options)
    else:
        _core.gemm_quantised(isa, packed, *_core.quantize_rows(isa, x, per_token), out, **options)
    return out


def panel_starts(isa, packed, m: int) -> list[int]:
    """The rows at which a call may begin or end: any in float formats, those where panels begin in others."""
    if packed.format in ("f32", "bf16"):
        return [0, 1, 8, m]
    count = -(-m // _core.panel_rows(isa))
    return [m * panel // count for panel in range(count + 1)]


def dequantised(x: np.ndarray, *, per_token: bool = False) -> np.ndarray:
    values, scales, _ = oracles.quantise_activations(x, per_token=per_token)
    return (values.reshape(x.shape[0], -1, 128) * scales[:, :, None].astype(np.float64)).reshape(x.shape[0], -1)[
        :, : x.shape[1]
    ]


@given(
    form=st.sampled_from(INTEGER),
    m=st.sampled_from(ROWS),
    n=st.sampled_from(OUTPUTS),
    k=st.sampled_from(INPUTS),
    per_token=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_integer_formats_against_float64_and_across_sets(form, m, n, k, per_token):
    packed, weights = matrix(*form, n, k)
    x = inputs(m, k, seed=m)
    isas = ISAS if m * n * k < 2_000_000 else [isa for isa in ISAS if isa != "scalar"] or ISAS
    results = [product(isa, packed, x, per_token=per_token) for isa in isas]
    assert len({result.tobytes() for result in results}) == 1
    # quantised inputs: only the rounding of the fp32 sums is left
    exact = dequantised(x, per_token=per_token)
    rounding = np.abs(exact) @ np.abs(weights).T * (k / 32 + 4) * 2.0**-24
    assert (np.abs(results[0] - exact @ weights.T) <= rounding).all()
    # the inputs themselves: half a step of the activations each
    steps = np.repeat(oracles.quantise_activations(x, per_token=per_token)[1], 128, axis=1)[:, :k]
    bound = steps / 2 @ np.abs(weights).T * 1.0001 + rounding
    assert (np.abs(results[0] - x.astype(np.float64) @ weights.T) <= bound).all()


@given(
    number=st.sampled_from(["f32", "bf16"]),
    m=st.sampled_from(ROWS),
    n=st.sampled_from(OUTPUTS),
    k=st.sampled_from(INPUTS),
)
@settings(max_examples=60, deadline=None)
def test_float_formats_against_float64(number, m, n, k):
    packed, weights = matrix(number, 0, n, k)
    x = inputs(m, k, seed=m)
    used = x if number == "f32" else oracles.bf16_floats(oracles.bf16_bits(x))
    expected = used.astype(np.float64) @ weights.T
    bound = np.abs(used.astype(np.float64)) @ np.abs(weights).T * (k + 2) * 2.0**-23 + 1e-30
    for isa in ISAS if m * n * k < 1_000_000 else ISAS[1:] or ISAS:
        assert (np.abs(product(isa, packed, x) - expected) <= bound).all(), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_row_does_not_depend_on_the_other_rows(isa, form):
    n, k = (37, 300) if isa == "scalar" else (161, 1500)
    packed, _ = matrix(*form, n, k)
    for m in (2, 3, 4, 5, 6, 11, 13, 26) if isa == "scalar" else (*range(2, 18), 33, 49, 97, 257):
        x = inputs(m, k, seed=m)
        whole = product(isa, packed, x)
        for row in {0, 1, m // 2, m - 1}:
            assert product(isa, packed, x[row : row + 1].copy()).tobytes() == whole[row].tobytes(), (m, row)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMATS)
def test_ranges_of_rows_and_tiles_cover_the_whole(isa, form):
    packed, _ = matrix(*form, 113, 257)
    x = inputs(29, 257)
    whole = product(isa, packed, x)
    pieces = np.full_like(whole, np.nan)
    starts = panel_starts(isa, packed, 29)
    for row_begin, row_end in itertools.pairwise((0, starts[1], starts[-2], 29)):
        for tile_begin, tile_end in ((0, 1), (1, 3), (3, 4)):
            product(
                isa,
                packed,
                x,
                out=pieces,
                row_begin=row_begin,
                row_end=row_end,
                tile_begin=tile_begin,
                tile_end=tile_end,
            )
    assert pieces.tobytes() == whole.tobytes()
    outside = np.full_like(whole, 7.0)
    begin, end = starts[1], starts[2]
    product(isa, packed, x, out=outside, row_begin=begin, row_end=end, tile_begin=1, tile_end=2)
    untouched = np.ones(whole.shape, bool)
    untouched[begin:end, 32:64] = False
    assert (outside[untouched] == 7.0).all()
    assert outside[begin:end, 32:64].tobytes() == whole[begin:end, 32:64].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_range_that_cuts_a_panel_is_refused(isa):
    packed, _ = matrix("int8", 0, 33, 129)
    with pytest.raises(ValueError, match="panels"):
        product(isa, packed, inputs(_core.panel_rows(isa), 129), row_begin=1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", ["int8", "int4", "nf4"])
def test_extreme_values_do_not_saturate(isa, number):
    """Every weight and activation at the ends of its range, all signs: sums of 128 products of 127 * 127."""
    k = 384
    weights = np.ones((64, k), np.float32)
    weights[1::2] = -1
    weights[2::4, ::2] *= -1
    packed = _core.pack(number, 0 if number == "int8" else 128, weights)
    codes = oracles.decode(packed.tobytes(), number, 64, k, 128)
    for m in (1, 3, 7, 13):
        values = np.where(np.random.default_rng(m).random((m, k)) < 0.5, 127, -127).astype(np.int8)
        values[0] = 127
        scales = np.ones((m, k // 128), np.float32)
        sums = values.reshape(m, -1, 32).sum(axis=2, dtype=np.int32)
        out = np.empty((m, 64), np.float32)
        _core.gemm_quantised(isa, packed, values, scales, sums, out)
        np.testing.assert_allclose(out, values.astype(np.float64) @ codes.weights(k).T, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMATS)
def test_bad_rows_poison_only_themselves(isa, form):
    packed, weights = matrix(*form, 33, 257)
    x = inputs(13, 257)
    clean = product(isa, packed, x)
    x[2, 200], x[7, 3] = np.nan, np.inf
    x[5] = 0
    result = product(isa, packed, x)
    assert not np.isfinite(result[2]).any()
    assert not np.isfinite(result[7][np.abs(weights[:, 3]) > 0]).any()
    assert (result[5] == 0).all()
    keep = [row for row in range(13) if row not in (2, 5, 7)]
    assert result[keep].tobytes() == clean[keep].tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_epilogues(form):
    packed, _ = matrix(*form, 98, 257)
    x = inputs(7, 257)
    bias = np.random.default_rng(1).standard_normal(98).astype(np.float32)
    residual = np.random.default_rng(2).standard_normal((7, 98)).astype(np.float32)
    gated = []
    for isa in ISAS:
        plain = product(isa, packed, x)
        assert product(isa, packed, x, bias=bias).tobytes() == (plain + bias).tobytes()
        added = product(isa, packed, x, out=residual.copy(), epilogue="add", bias=bias)
        assert added.tobytes() == (residual + (plain + bias)).tobytes()
        gate, up = plain[:, 0::2].astype(np.float64), plain[:, 1::2].astype(np.float64)
        out = product(isa, packed, x, out=np.full((7, 49), np.nan, np.float32), epilogue="swiglu")
        np.testing.assert_allclose(out, gate / (1 + np.exp(-gate)) * up, rtol=2e-6, atol=1e-30)
        gated.append(out.tobytes())
    if form[0] != "bf16":
        assert len(set(gated)) == 1


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
@pytest.mark.parametrize("form", FORMATS)
def test_long_inputs_split_into_passes(isa, form):
    """Enough bytes per row that the packed activations of 40 rows do not fit one pass, nor a full panel."""
    k = 40_000
    weights = (np.random.default_rng(0).standard_normal((3, k)) * 0.02).astype(np.float32)
    packed = _core.pack(*form, weights)
    x = inputs(40, k)
    whole = product(isa, packed, x)
    assert np.isfinite(whole).all()
    for row in (0, 17, 39):
        assert product(isa, packed, x[row : row + 1].copy()).tobytes() == whole[row].tobytes()
