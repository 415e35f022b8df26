"""Paged attention: against float64, and the same bytes whole, chunked, decoded or split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.native import _core

from . import oracles

ISAS = _core.available_isas()
FORMATS = ("f32", "bf16", "int8", "fp8")
CASES = [(isa, kv) for isa in ISAS for kv in FORMATS]


@dataclass(frozen=True)
class Sequence:
    """A random sequence in a paged cache whose unused slots hold NaN."""

    query: np.ndarray  # [positions, heads, d]
    keys: np.ndarray  # [positions, d]
    values: np.ndarray
    blocks: np.ndarray  # [num_blocks, bytes]
    table: list[int]


def fill(isa, kv, blocks, table, keys, values, begin, end) -> None:
    for position in range(begin, end):
        _core.store_kv(isa, kv, blocks[table[position // 16]], position % 16, keys[position], values[position])


def make(
    isa: str, kv: str, positions: int, heads: int, head_dim: int, seed: int = 0, *, stored: int | None = None
) -> Sequence:
    generator = np.random.default_rng(seed)
    query = generator.standard_normal((positions, heads, head_dim)).astype(np.float32)
    keys, values = (generator.standard_normal((positions, head_dim)).astype(np.float32) for _ in range(2))
    num_blocks = -(-positions // 16)
    blocks = np.full((num_blocks + 2, oracles.kv_head_bytes(kv, head_dim)), 0xFF, np.uint8)  # NaN everywhere
    table = [int(b) for b in generator.permutation(num_blocks + 2)[:num_blocks]]
    fill(isa, kv, blocks, table, keys, values, 0, positions if stored is None else stored)
    return Sequence(query, keys, values, blocks, table)


def attend(isa, kv, s: Sequence, begin: int, end: int, *, window=0, scale=None, table=None, splits=None) -> np.ndarray:
    heads, head_dim = s.query.shape[1:]
    query = np.ascontiguousarray(s.query[begin:end].reshape(end - begin, -1))
    scale = head_dim**-0.5 if scale is None else scale
    return _core.attention(isa, kv, query, heads, s.blocks, table or s.table, begin, window, scale, splits)


def expected(s: Sequence, begin: int, end: int, *, window=0, kv="f32") -> np.ndarray:
    """float64 attention over inputs rounded as the kernels round them for `kv`."""
    query, keys, values = s.query, s.keys, s.values
    if kv == "int8":
        return oracles.int8_attention(query[begin:end], keys, values, begin, window, s.query.shape[2] ** -0.5)
    if kv == "bf16":
        query, keys, values = (oracles.bf16_floats(oracles.bf16_bits(x)) for x in (query, keys, values))
    if kv == "fp8":
        keys, values = (oracles.fp8_rows(x) for x in (keys, values))
    return oracles.attention(query[begin:end], keys, values, begin, window, s.query.shape[2] ** -0.5)


def tolerance(isa: str, kv: str) -> float:
    """VDPBF16PS takes the softmax weights as bf16, too; a weight of an int8 cache that lies between two of its 16383
    steps may fall to either side, a few of a partition."""
    if kv == "int8":
        return 6 * 5 / 16383
    return 5e-3 if (isa, kv) == ("avx512bf16", "bf16") else 2e-5


@given(
    case=st.sampled_from(CASES),
    positions=st.integers(1, 290),
    queries=st.sampled_from([1, 2, 3, 7, 17, 40]),
    heads=st.sampled_from([1, 2, 3, 4, 7, 8, 13, 16]),
    head_dim=st.sampled_from([2, 6, 16, 32, 48, 64, 80, 128]),
    window=st.sampled_from([0, 0, 1, 5, 16, 100, 129]),
)
@settings(max_examples=80, deadline=None)
def test_against_float64(case, positions, queries, heads, head_dim, window):
    isa, kv = case
    if isa == "scalar":
        positions, heads = positions // 4 + 1, min(heads, 3)
    s = make(isa, kv, positions, heads, head_dim, seed=positions)
    begin = max(0, positions - queries)
    found = attend(isa, kv, s, begin, positions, window=window)
    reference = expected(s, begin, positions, window=window, kv=kv)
    np.testing.assert_allclose(found, reference, rtol=tolerance(isa, kv), atol=tolerance(isa, kv))
    coarse = 2e-2 if kv in ("f32", "bf16") else 0.25
    np.testing.assert_allclose(found, expected(s, begin, positions, window=window), rtol=coarse, atol=coarse)


@pytest.mark.parametrize(("isa", "kv"), CASES)
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 80), (7, 22), (16, 32)])
def test_whole_chunked_and_decoded_are_the_same_bytes(isa, kv, window, heads, head_dim):
    """Each step stores its tokens first and reads them back; slots after them still hold NaN."""
    positions = 70 if isa == "scalar" else 300
    s = make(isa, kv, positions, heads, head_dim)
    whole = attend(isa, kv, s, 0, positions, window=window)
    for chunk in (1, 5, 16, 33):
        part = make(isa, kv, positions, heads, head_dim, stored=0)
        for begin in range(0, positions, chunk):
            end = min(begin + chunk, positions)
            fill(isa, kv, part.blocks, part.table, part.keys, part.values, begin, end)
            found = attend(isa, kv, part, begin, end, window=window)
            assert found.tobytes() == whole[begin:end].tobytes(), (chunk, begin)


@pytest.mark.parametrize(("isa", "kv"), CASES)
@pytest.mark.parametrize("window", [0, 70, 200])
@pytest.mark.parametrize("heads", [1, 5, 16, 50])
def test_partials_and_merge_equal_the_whole(isa, kv, window, heads):
    positions = 600
    s = make(isa, kv, positions, heads, 32)
    for position in (0, 1, 127, 128, 300, 599):
        whole = attend(isa, kv, s, position, position + 1, window=window)
        partitions = position // 128 + 1
        first = max(0, position + 1 - window) // 128 if window else 0
        for splits in (
            [0, partitions],
            [first, partitions],
            sorted({0, partitions // 2, partitions}),
            [*range(partitions + 1)],
        ):
            found = attend(isa, kv, s, position, position + 1, window=window, splits=splits)
            assert found.tobytes() == whole.tobytes(), (position, splits)


@pytest.mark.parametrize(("isa", "kv"), CASES)
def test_blocks_outside_the_window_are_not_touched(isa, kv):
    s = make(isa, kv, 400, 3, 32)
    for begin, end, window in ((399, 400, 20), (350, 380, 100), (128, 160, 1), (17, 18, 2)):
        clean = attend(isa, kv, s, begin, end, window=window)
        gone = (begin + 1 - window) // 16  # blocks before the first query's window
        table = [-1] * gone + s.table[gone:]
        assert attend(isa, kv, s, begin, end, window=window, table=table).tobytes() == clean.tobytes()
        assert np.isfinite(clean).all()


@pytest.mark.parametrize(("isa", "kv"), CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_a_query_must_not_see_never_leaks(isa, kv, bad):
    """Keys and values after a query, or before its window, are not finite, also in the slot beside a visible one."""
    s = make(isa, kv, 180, 3, 48)
    for position in (0, 1, 2, 15, 16, 31, 126, 127, 128, 130, 151):
        for window in (0, 1, 2, 7, 130):
            clean = attend(isa, kv, s, position, position + 1, window=window)
            hidden = make(isa, kv, 180, 3, 48)
            begin = max(0, position + 1 - window) if window else 0
            outside = [p for p in range(180) if p < begin or p > position]
            hidden.keys[outside], hidden.values[outside] = bad, bad
            fill(isa, kv, hidden.blocks, hidden.table, hidden.keys, hidden.values, 0, 180)
            found = attend(isa, kv, hidden, position, position + 1, window=window)
            assert found.tobytes() == clean.tobytes(), (position, window)
            # in a chunk with its successors, too
            chunk = attend(isa, kv, hidden, position, min(position + 9, 180), window=window)
            assert chunk[0].tobytes() == clean[0].tobytes(), (position, window)


@pytest.mark.parametrize(("isa", "kv"), CASES)
def test_nan_that_is_seen_is_not_hidden(isa, kv):
    s = make(isa, kv, 40, 2, 32)
    for where in ("query", "keys", "values"):
        poisoned = make(isa, kv, 40, 2, 32)
        getattr(poisoned, where)[20] = np.nan
        fill(isa, kv, poisoned.blocks, poisoned.table, poisoned.keys, poisoned.values, 0, 40)
        found = attend(isa, kv, poisoned, 20, 21)
        assert np.isnan(found).all(), where
    assert np.isfinite(attend(isa, kv, s, 20, 21)).all()


@pytest.mark.parametrize("kv", FORMATS)
def test_large_scores_do_not_overflow(kv):
    for isa in ISAS:
        s = make(isa, kv, 150, 2, 16)
        s.query[...] *= 300
        found, reference = attend(isa, kv, s, 140, 150), expected(s, 140, 150, kv=kv)
        np.testing.assert_allclose(found, reference, rtol=0, atol=max(1e-3, 4 * tolerance(isa, kv)))


@pytest.mark.parametrize("kv", FORMATS)
def test_sets_without_native_bf16_agree(kv):
    """The order of operations is one code; only VDPBF16PS rounds in its own way."""
    portable = [isa for isa in ISAS if isa != "avx512bf16" or kv != "bf16"]
    results = [attend(isa, kv, make(isa, kv, 90, 3, 48), 60, 90, window=50).tobytes() for isa in portable]
    assert len(set(results)) == 1


def test_an_even_slot_clears_the_value_beside_it():
    for isa in ISAS:
        block = np.full(32 * 8 * 2, 0xFF, np.uint8)
        ones = np.ones(8, np.float32)
        _core.store_kv(isa, "bf16", block, 4, ones, ones)
        values = block.view(np.uint16)[16 * 8 :].reshape(8, 8, 2)
        assert (values[2] == [0x3F80, 0]).all()
        _core.store_kv(isa, "bf16", block, 5, ones, 2 * ones)
        assert (values[2] == [0x3F80, 0x4000]).all()
        assert (block.view(np.uint16)[: 16 * 8].reshape(4, 16, 2)[:, 4:6] == 0x3F80).all()
        assert (block.view(np.uint16)[: 16 * 8].reshape(4, 16, 2)[:, 6:] == 0xFFFF).all()
