"""int8 and fp8 caches: what is stored, how far attention over it is from the truth, and the same bytes on every set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.native import _core

from . import oracles
from .test_kernels_attention import ISAS, attend, fill, make

HEAD_DIMS = (6, 32, 64, 80, 96, 128, 256)


def stored(isa: str, kv: str, key: np.ndarray, value: np.ndarray, slot: int) -> dict[str, np.ndarray]:
    """Store a token and read the block as the layout describes it; all other slots must keep their bytes."""
    head_dim = len(key)
    padded = -(-head_dim // 4) * 4
    block = np.full(oracles.kv_head_bytes(kv, head_dim), 0xA5, np.uint8)
    _core.store_kv(isa, kv, block, slot, key, value)
    keys = block[: 16 * padded].reshape(padded // 4, 16, 4)
    values = block[16 * padded : 32 * padded].reshape(4, padded, 4)
    scales = block[32 * padded :].view(np.float32).reshape(2, 16)
    others = [t for t in range(16) if t != slot]
    untouched = (keys[:, others], np.delete(values.transpose(0, 2, 1).reshape(16, padded), slot, axis=0))
    assert all((part == 0xA5).all() for part in (*untouched, scales.view(np.uint8).reshape(2, 16, 4)[:, others]))
    return {
        "keys": keys[:, slot].reshape(-1).copy(),
        "values": values[slot // 4, :, slot % 4].copy(),
        "scales": scales[:, slot].copy(),
    }


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim", [2, 6, 16, 22, 80, 256])
def test_int8_slots_hold_codes_and_scales(isa, head_dim):
    generator = np.random.default_rng(head_dim)
    for slot in (0, 3, 9, 15):
        key, value = generator.standard_normal((2, head_dim)).astype(np.float32) * np.float32(3)
        found = stored(isa, "int8", key, value, slot)
        for number, (x, codes) in enumerate(((key, found["keys"] ^ 0x80), (value, found["values"]))):
            expected, scale = oracles.int8_rows(x)
            assert (codes.view(np.int8)[:head_dim] == expected).all()
            assert (codes[head_dim:] == 0).all(), "padding holds zeros"
            assert found["scales"][number] == scale[0]


@pytest.mark.parametrize("isa", ISAS)
def test_fp8_slots_hold_the_nearest_code(isa):
    """Every finite code, every midpoint of two codes and its neighbours; an amax of 448 makes the scale 1 exactly."""
    table = oracles.fp8_floats()[:127].astype(np.float32)
    middles = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    generator = np.random.default_rng(0)
    random = (generator.standard_normal(2000) * 2.0 ** generator.uniform(-12, 8, 2000)).astype(np.float32)
    points = np.concatenate(
        [table, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(500)), random]
    )
    points = np.clip(np.concatenate([points, -points]), -448, 448)
    expected = torch.from_numpy(points).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    for begin in range(0, len(points), 255):
        part = points[begin : begin + 255]
        row = np.concatenate([[448], part, np.zeros((1 - len(part)) % 2)]).astype(np.float32)
        found = stored(isa, "fp8", row, -row, begin % 16)
        assert (found["scales"] == 1).all()
        assert (found["keys"][1 : 1 + len(part)] == expected[begin : begin + 255]).all()
        assert (found["values"][1 : 1 + len(part)] == expected[begin : begin + 255] ^ 0x80).all()


@pytest.mark.parametrize("isa", ISAS)
def test_every_fp8_code_is_widened_exactly(isa):
    """One visible key has the weight 1, so attention gives its values as they are; torch and a formula say which."""
    block = np.zeros((1, oracles.kv_head_bytes("fp8", 256)), np.uint8)
    codes = np.arange(256, dtype=np.uint8)
    block[0, 16 * 256 : 32 * 256].reshape(4, 256, 4)[0, :, 0] = codes
    block[0, 32 * 256 :].view(np.float32)[:] = 1
    found = _core.attention(isa, "fp8", np.zeros((1, 256), np.float32), 1, block, [0], 0, 0, 1.0, None)[0]
    np.testing.assert_array_equal(found, torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy())
    np.testing.assert_array_equal(found, oracles.fp8_floats())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_rows_that_are_not_finite_or_tiny(isa, kv):
    ones, zero_code = np.ones(16, np.float32), {"int8": 0x80, "fp8": 0}[kv]
    for bad, scale in ((np.nan, np.nan), (np.inf, np.nan), (-np.inf, np.nan), (1e-37, 0.0)):
        row = ones.copy()
        row[5] = bad
        if scale == 0.0:
            row[:] = bad
        found = stored(isa, kv, row, ones, 2)
        np.testing.assert_equal(found["scales"][0], np.float32(scale))
        assert (found["keys"] == zero_code).all()
        assert np.isfinite(found["scales"][1])
        found = stored(isa, kv, ones, row, 2)
        np.testing.assert_equal(found["scales"][1], np.float32(scale))
        assert (found["values"] == 0).all()


def bound(kv: str, s, begin: int, end: int) -> float:
    """How far attention over the format may be from the truth.

    Let e be the most that rounding changes a score. Each softmax weight changes by a factor within exp(+-2e), so the
    result by (exp(2e) - 1) times the largest value; rounding values adds their largest rounding error, and the 14-bit
    weights of int8 add half a unit each: 64 / 16383 of the largest value.
    """
    query, keys, values = (np.abs(x.astype(np.float64)) for x in (s.query[begin:end], s.keys[:end], s.values[:end]))
    scale, largest = s.query.shape[2] ** -0.5, values.max()
    k_max, q_max = keys.max(axis=1), query.max(axis=2, keepdims=True)
    if kv == "int8":
        error = (query.sum(axis=2).max() * k_max.max() + keys.sum(axis=1).max() * q_max.max()) / 254
        error += s.query.shape[2] * k_max.max() * q_max.max() / 254**2
        rounding = largest / 254 + largest * 64 / 16383
    else:  # half a unit of three bits, or of 2^-9 where subnormal
        rounded = keys / 16 + k_max[:, None] / 448 / 1024
        error = np.einsum("thd,kd->thk", query, rounded).max()
        rounding = largest / 16 + largest / 448 / 1024
    return (np.exp(2 * error * scale) - 1) * largest + rounding + 1e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_within_the_bound_of_the_format(isa, kv, head_dim):
    for positions, heads in ((1, 2), (16, 4), (129, 1), (300, 2)):
        s = make(isa, kv, positions, heads, head_dim, seed=positions)
        s.query[...] *= 0.25  # so that the bound says something
        begin = max(0, positions - 3)
        error = np.abs(attend(isa, kv, s, begin, positions) - reference(s, begin, positions)).max()
        assert error < bound(kv, s, begin, positions)
        assert bound(kv, s, begin, positions) < 10 * np.abs(s.values).max()


def reference(s, begin: int, end: int) -> np.ndarray:
    return oracles.attention(s.query[begin:end], s.keys, s.values, begin, 0, s.query.shape[2] ** -0.5)


@given(
    kv=st.sampled_from(["int8", "int8", "fp8"]),
    positions=st.sampled_from([1, 2, 15, 16, 17, 127, 128, 129, 300]),
    queries=st.sampled_from([1, 1, 2, 5, 13]),
    heads=st.sampled_from([1, 2, 4, 8, 16, 13]),
    head_dim=st.sampled_from(HEAD_DIMS),
    window=st.sampled_from([0, 0, 1, 5, 16, 100, 129]),
    spread=st.sampled_from([0.1, 1.0, 40.0]),
)
@settings(max_examples=150, deadline=None)
def test_every_set_gives_the_same_bytes(kv, positions, queries, heads, head_dim, window, spread):
    begin = max(0, positions - queries)
    results = set()
    for isa in ISAS:
        s = make(isa, kv, positions, heads, head_dim, seed=positions)
        s.query[...] *= spread
        found = attend(isa, kv, s, begin, positions, window=window)
        assert np.isfinite(found).all()
        results.add(found.tobytes())
        split = [*range(max(0, begin + 1 - window) // 128 if window else 0, begin // 128 + 2)]
        alone = attend(isa, kv, s, begin, begin + 1, window=window, splits=split)
        assert alone.tobytes() == found[:1].tobytes()
    assert len(results) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_small_weights_beside_a_large_one_are_kept(isa):
    """One key takes most of the softmax; 127 others of 1/500 of its weight would vanish in seven bits."""
    s = make(isa, "int8", 128, 1, 16)
    s.query[...], s.keys[...], s.values[...] = 0, 0, 0
    s.query[127, 0, 0] = 4
    s.keys[0, 0] = np.log(500.0)
    s.values[0, 1] = s.values[1:, 2] = 1
    fill(isa, "int8", s.blocks, s.table, s.keys, s.values, 0, 128)
    found = attend(isa, "int8", s, 127, 128)[0]
    assert found[1:3].tolist() == pytest.approx([500 / 627, 127 / 627], rel=1e-2)


@pytest.mark.parametrize("isa", ISAS)
def test_whatever_a_hidden_int8_slot_holds_adds_nothing(isa):
    """Slots after a query, and before its window: random codes and scales, infinite and NaN ones among them."""
    s = make(isa, "int8", 140, 5, 80)
    generator = np.random.default_rng(1)
    for position, window in ((0, 0), (2, 0), (17, 3), (130, 0), (130, 4), (127, 128)):
        clean = attend(isa, "int8", s, position, position + 1, window=window)
        begin = max(0, position + 1 - window) if window else 0
        dirty = make(isa, "int8", 140, 5, 80, stored=0)
        dirty.blocks[...] = generator.integers(0, 256, dirty.blocks.shape, np.uint8)
        scales = dirty.blocks[:, -128:].view(np.float32)
        scales[...] = generator.choice(np.array([np.nan, np.inf, 1e38, -1.0], np.float32), scales.shape)
        fill(isa, "int8", dirty.blocks, dirty.table, dirty.keys, dirty.values, begin, position + 1)
        found = attend(isa, "int8", dirty, position, position + 1, window=window)
        assert found.tobytes() == clean.tobytes(), (position, window)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_values_of_weight_nothing_still_show_that_they_are_not_numbers(isa, kv):
    """A visible value that is NaN shows, even where exp has taken its weight to zero."""
    s = make(isa, kv, 20, 1, 16)
    s.query[...] *= 1000
    clean = attend(isa, kv, s, 19, 20, scale=1.0)
    assert np.isfinite(clean).all()
    s.values[int(np.argmin(s.keys[:19] @ s.query[19, 0]))] = np.nan
    fill(isa, kv, s.blocks, s.table, s.keys, s.values, 0, 20)
    assert np.isnan(attend(isa, kv, s, 19, 20, scale=1.0)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("tiny", [0.0, 1e-37])
def test_values_that_are_nothing_add_nothing(isa, kv, tiny):
    """A partition of values that round to zero, alone and before one of others."""
    s = make(isa, kv, 200, 2, 32)
    s.values[:128] = tiny
    fill(isa, kv, s.blocks, s.table, s.keys, s.values, 0, 200)
    assert (attend(isa, kv, s, 100, 120) == 0).all()
    assert np.abs(attend(isa, kv, s, 190, 200) - reference(s, 190, 200)).max() < bound(kv, s, 190, 200)


def test_sizes_of_a_head() -> None:
    for kv in ("f32", "bf16", "int8", "fp8"):
        for head_dim in (2, 6, 64, 80, 128):
            assert _core.kv_head_bytes(kv, head_dim) == oracles.kv_head_bytes(kv, head_dim)
    with pytest.raises(ValueError, match="f32, bf16, int8 or fp8"):
        _core.kv_head_bytes("int4", 64)
