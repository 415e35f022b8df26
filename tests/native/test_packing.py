"""Packed weights: exact sizes, the bytes an independent quantiser and reader expect, the same on every set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.native import _core
from openautoglm.spec.formats import NumberFormat, WeightFormat

from . import oracles

ISAS = _core.available_isas()
GROUPED = [("int4", 32), ("int4", 64), ("int4", 128), ("nf4", 32), ("nf4", 64), ("nf4", 128)]
FORMATS = [("f32", 0), ("bf16", 0), ("int8", 0), *GROUPED]
SHAPES = [(1, 1), (31, 127), (32, 128), (33, 129), (64, 300), (97, 640)]


def random_weights(n: int, k: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n, k)) * generator.choice([1e-3, 0.05, 3.0], (n, 1))).astype(np.float32)


@pytest.mark.parametrize(("number", "group"), FORMATS)
@given(n=st.integers(1, 200), k=st.integers(1, 1100))
@settings(max_examples=40, deadline=None)
def test_sizes_are_those_of_the_description(number, group, n, k):
    expected = WeightFormat(number=NumberFormat(number), group=group).packed_bytes(n, k)
    assert _core.packed_bytes(number, n, k, group) == expected


@pytest.mark.parametrize(("number", "group"), [f for f in FORMATS if f[0] not in ("f32", "bf16")])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_codes_are_those_of_an_independent_quantiser(number, group, n, k):
    weights = random_weights(n, k)
    packed = _core.pack(number, group, weights)
    assert packed.nbytes == WeightFormat(number=NumberFormat(number), group=group).packed_bytes(n, k)
    found = oracles.decode(packed.tobytes(), number, n, k, group)
    expected = oracles.quantise(weights, number, group)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.zeros, expected.zeros)
    np.testing.assert_array_equal(found.weights(k), expected.weights(k))


@pytest.mark.parametrize(("number", "group"), FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_set_packs_and_reads_the_same_bytes(number, group, n, k):
    weights = random_weights(n, k, seed=1)
    packed = [_core.pack(number, group, weights, isa) for isa in ISAS]
    assert len({p.tobytes() for p in packed}) == 1
    rows = np.array([n - 1, 0, n // 2], np.int32)
    gathered = [_core.gather_rows(isa, packed[0], rows) for isa in ISAS]
    assert len({g.tobytes() for g in gathered}) == 1
    if number == "f32":
        expected = weights
    elif number == "bf16":
        expected = oracles.bf16_floats(oracles.bf16_bits(weights))
    else:
        expected = oracles.decode(packed[0].tobytes(), number, n, k, group).weights(k)
    np.testing.assert_allclose(gathered[0], expected[rows], rtol=1e-7, atol=0)


@pytest.mark.parametrize(("number", "group", "bound"), [("int8", 0, 0.5), ("int4", 64, 0.5), ("nf4", 64, 20.0)])
def test_error_is_within_half_a_step(number, group, bound):
    """int4 without clipping has at most half a step of error; a chosen clip only lowers the squared error."""
    weights = random_weights(40, 512, seed=2)
    packed = _core.pack(number, group, weights)
    found = oracles.decode(packed.tobytes(), number, 40, 512, group)
    error = found.weights(512) - weights
    steps = np.repeat(found.scales, 512 // found.scales.shape[1], axis=1)
    if number == "int4":
        grouped = np.square(error).reshape(40, -1, group).sum(axis=2)
        low = np.minimum(weights.reshape(40, -1, group).min(axis=2), 0)
        high = np.maximum(weights.reshape(40, -1, group).max(axis=2), 0)
        assert (grouped <= group * np.square((high - low) / 15 * 0.51 + 2e-3 * np.abs(weights).max())).all()
    else:
        assert (np.abs(error) <= bound * steps * 1.0001).all()


def test_a_clip_is_chosen_by_squared_error():
    """Sixty-three equal small weights and one large one: clipping the large one costs less than coarse steps."""
    weights = np.tile(np.linspace(-0.01, 0.01, 64, dtype=np.float32), (4, 2))
    weights[:, 5] = 0.04
    found = oracles.decode(_core.pack("int4", 64, weights).tobytes(), "int4", 4, 128, 64)
    assert (found.scales[:, 0] < 0.05 / 15 * 0.99).all()
    assert np.abs(found.weights(128)[:, 5] - 0.04).max() > 1e-3


@pytest.mark.parametrize(("number", "group"), FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_sources_of_16_bits_equal_their_fp32_values(number, group, isa):
    weights = random_weights(35, 259, seed=3)
    half = weights.astype(np.float16)
    half[0, :4] = [6e-8, -3e-5, 0.0, 65504.0]
    bits = oracles.bf16_bits(weights)
    for narrow, wide in ((half, half.astype(np.float32)), (bits, oracles.bf16_floats(bits))):
        assert _core.pack(number, group, narrow, isa).tobytes() == _core.pack(number, group, wide, isa).tobytes()


@pytest.mark.parametrize(("number", "group"), FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_a_weight_that_is_not_finite_is_reported_with_its_row(number, group, value, isa):
    weights = random_weights(70, 130)
    weights[41, 129] = value
    with pytest.raises(ValueError, match="row 41 "):
        _core.pack(number, group, weights, isa)


@pytest.mark.parametrize(("number", "group", "value"), [("int4", 32, 2e6), ("nf4", 64, 7e4), ("bf16", 0, 3.4e38)])
def test_a_weight_beyond_the_format_is_reported(number, group, value):
    weights = random_weights(3, 130)
    weights[2, 7] = value
    with pytest.raises(ValueError, match="row 2 "):
        _core.pack(number, group, weights)


@pytest.mark.parametrize(("number", "group"), FORMATS)
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-9, 0.25, -0.25, 6e4])
def test_constant_rows(number, group, value):
    weights = np.full((3, 200), value, np.float32)
    found = _core.gather_rows("scalar", _core.pack(number, group, weights), np.arange(3, dtype=np.int32))
    np.testing.assert_allclose(found, weights, rtol=5e-3, atol=1e-6)


def test_bad_arguments_are_refused():
    weights = random_weights(4, 64)
    with pytest.raises(ValueError, match="group"):
        _core.pack("int4", 48, weights)
    with pytest.raises(ValueError, match="group"):
        _core.pack("int8", 32, weights)
    with pytest.raises(ValueError, match="not a weight format"):
        _core.pack("int3", 0, weights)
    with pytest.raises(ValueError, match="out of range"):
        _core.gather_rows("scalar", _core.pack("int8", 0, weights), np.array([4], np.int32))
    with pytest.raises(ValueError, match="instruction set"):
        _core.pack("int8", 0, weights, "sse2")
