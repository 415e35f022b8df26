"""Operations, bytes and shares of the roofline against counts written out by hand."""

from dataclasses import replace

import pytest

from openautoglm.bench.roofline import Roofline, best_of
from openautoglm.bench.work import Work, step_work
from openautoglm.memory.weights import weight_bytes
from openautoglm.spec.formats import ModelFormats, NumberFormat
from tests.planner.models import GLM_9B, SMALL

INT8 = ModelFormats.for_quantisation(NumberFormat.INT8)
ROOFLINE = Roofline(
    isa="x",
    num_threads=2,
    int8_operations_per_second=1000.0,
    bf16_operations_per_second=500.0,
    f32_operations_per_second=250.0,
    read_bytes_per_second=100.0,
    small_page_read_bytes_per_second=50.0,
)


def test_prefill_of_glm_9b():
    # Parameters of one layer: qkv, output, gate and up, down.
    layer = 4096 * (36 * 128) + 4096 * 4096 + 3 * 4096 * 13696
    work = step_work(GLM_9B, INT8, [(0, 512)], 1)
    assert work.int8_operations == 2 * 512 * 40 * layer + 2 * 151552 * 4096
    # Query i sees i + 1 keys: 512 * 513 / 2 pairs, in each of 32 heads two products of 128 multiply-adds.
    assert work.bf16_operations == 40 * 32 * (512 * 513 // 2) * 2 * 2 * 128
    assert work.f32_operations == 0


def test_decoding_reads_every_weight_once_and_all_of_the_cache():
    formats = ModelFormats.for_quantisation(NumberFormat.INT4)
    weights = weight_bytes(GLM_9B, formats)
    work = step_work(GLM_9B, formats, [(127, 1), (1000, 1), (5, 1)], 3)
    assert work.bytes_read == weights.layers + weights.head + weights.norms + (128 + 1001 + 6) * 40960
    assert work.bf16_operations == 40 * 32 * (128 + 1001 + 6) * 4 * 128


def test_chunks_add_up_to_the_whole():
    whole = step_work(SMALL, INT8, [(0, 100)], 1)
    parts = [step_work(SMALL, INT8, [(0, 37)], 0), step_work(SMALL, INT8, [(37, 63)], 1)]
    assert sum(part.int8_operations for part in parts) == whole.int8_operations
    assert sum(part.bf16_operations for part in parts) == whole.bf16_operations


@pytest.mark.parametrize(("kv", "unit"), [(NumberFormat.INT8, "int8_operations"), (NumberFormat.FP8, "f32_operations")])
def test_smaller_caches_read_fewer_bytes_in_their_units(kv, unit):
    small = replace(INT8, kv=kv)
    work, wide = (step_work(GLM_9B, formats, [(1000, 1), (5, 1)], 2) for formats in (small, INT8))
    assert wide.bytes_read - work.bytes_read == (1001 + 6) * (40960 - 40 * 2 * 2 * (128 + 4))
    attention = 40 * 32 * (1001 + 6) * 4 * 128
    assert wide.bf16_operations == attention
    assert work.bf16_operations == 0
    assert getattr(work, unit) - getattr(wide, unit) == attention


@pytest.mark.parametrize("rows", [[(0, 7)], [(30, 5)], [(3, 20), (60, 1)], [(0, 9), (9, 1)]])
def test_a_window_hides_keys(rows):
    layers = tuple(replace(layer, mixer=replace(layer.mixer, window=9)) for layer in SMALL.layers)
    work = step_work(replace(SMALL, layers=layers), INT8, rows, 0)
    pairs = sum(
        sum(1 for key in range(query + 1) if query - key < 9) for old, new in rows for query in range(old, old + new)
    )
    assert work.bf16_operations == 3 * 5 * pairs * 4 * 40
    kept = sum(min(old + new, 9) for old, new in rows)
    weights = weight_bytes(SMALL, INT8)
    assert work.bytes_read == weights.layers + weights.norms + kept * 3 * 2 * 40 * 2


@pytest.mark.parametrize(
    ("quant", "unit"),
    [
        (NumberFormat.INT8, "int8_operations"),
        (NumberFormat.NF4, "int8_operations"),
        (NumberFormat.BF16, "bf16_operations"),
        (NumberFormat.F32, "f32_operations"),
    ],
)
def test_each_format_runs_in_its_unit(quant, unit):
    formats = ModelFormats.for_quantisation(quant)
    layer = 200 * (7 * 40) + 200 * 200 + 3 * 200 * 300
    matrices = 2 * (3 * layer + 1000 * 200)
    attention = 3 * 5 * 1 * 4 * 40
    work = step_work(SMALL, formats, [(0, 1)], 1)
    expected = {"int8_operations": 0, "bf16_operations": 0, "f32_operations": 0}
    expected[unit] += matrices
    expected["f32_operations" if quant is NumberFormat.F32 else "bf16_operations"] += attention
    assert {name: getattr(work, name) for name in expected} == expected


def test_the_least_time_is_the_slower_of_arithmetic_and_reading():
    work = Work(int8_operations=1000, bf16_operations=500, f32_operations=500, bytes_read=100)
    assert work.arithmetic_seconds(ROOFLINE) == 4.0
    assert work.least_seconds(ROOFLINE) == 4.0
    assert replace(work, bytes_read=1000).least_seconds(ROOFLINE) == 10.0


def test_limits_are_the_best_of_several_measurements():
    other = replace(ROOFLINE, int8_operations_per_second=900.0, read_bytes_per_second=120.0)
    best = best_of(ROOFLINE, other)
    assert best == replace(ROOFLINE, read_bytes_per_second=120.0)
