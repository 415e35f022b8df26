"""Bytes of plans against sums written out by hand."""

from dataclasses import replace

import pytest

from openautoglm.memory.loading import loading_bytes
from openautoglm.memory.runtime import RuntimeNeeds, estimated_tokenizer, runtime_bytes
from openautoglm.memory.workspace import workspace_bytes
from openautoglm.planner.price import Choice, Pricer, headroom_bytes, largest_peak_bytes
from openautoglm.spec.arch import RotarySpec
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.units import MIB
from tests.planner.models import GLM_9B, SMALL, decoder


def price(spec, quant, context, concurrency, *, group=None):
    choice = Choice(
        formats=ModelFormats.for_quantisation(quant, group=group),
        context_tokens=context,
        concurrency=concurrency,
        max_step_tokens=128,
        max_step_rows=8,
        num_threads=2,
    )
    return choice, Pricer(spec).breakdown(choice)


def test_glm_9b_int4():
    # A tile is 32 outputs; per 128 inputs int4-g64 takes 2048 + 2*(64 + 32) = 2240 bytes.
    tile = 2240
    qkv = (32 + 2 + 2) * 128 // 32 * (4096 // 128) * tile
    out = 4096 // 32 * (4096 // 128) * tile
    gate_up = 2 * 13696 // 32 * (4096 // 128) * tile
    down = 4096 // 32 * (13696 // 128) * tile
    table = 151552 // 32 * (32 * 4096 + 32 * 4)  # int8 and a scale per output
    vectors = 4 * (40 * (2 * 4096 + 36 * 128) + 4096)  # two norms and a qkv bias per layer, the final norm
    choice, breakdown = price(GLM_9B, NumberFormat.INT4, 1000, 3)
    assert breakdown.layer_weight_bytes == 40 * (qkv + out + gate_up + down)
    assert breakdown.head_weight_bytes == table == breakdown.embedding_weight_bytes
    assert breakdown.norm_bytes == vectors
    assert choice.num_blocks == 3 * 63
    assert breakdown.kv_bytes == 3 * 63 * 16 * 40960  # the model's published bytes of KV per token
    assert breakdown.headroom_bytes == breakdown.peak_bytes // 50
    assert breakdown.workspace_bytes == workspace_bytes(
        GLM_9B, choice.formats, max_step_tokens=128, max_step_rows=8, num_threads=2
    )
    processes = runtime_bytes(RuntimeNeeds(tokenizer=estimated_tokenizer(151552)), 2)
    assert breakdown.runtime_bytes == processes + 3 * 63 * 560


@pytest.mark.parametrize(
    ("quant", "layers", "table"),
    [
        # 280 qkv outputs are 9 tiles, 200 are 7, 600 are 19; inputs 200 pad to 256, 300 to 384
        (NumberFormat.INT8, 3 * ((9 + 19) * (32 * 256 + 128) + 7 * (32 * 256 + 128) + 7 * (32 * 384 + 128)), 266240),
        (NumberFormat.INT4, 3 * ((9 + 19 + 7) * 2 * 2240 + 7 * 3 * 2240), 266240),
        (NumberFormat.NF4, 3 * ((9 + 19 + 7) * 2 * 2176 + 7 * 3 * 2176), 266240),
        (NumberFormat.BF16, 3 * ((9 + 19 + 7) * 32 * 200 * 2 + 7 * 32 * 300 * 2), 32 * 32 * 200 * 2),
        (NumberFormat.F32, 3 * ((9 + 19 + 7) * 32 * 200 * 4 + 7 * 32 * 300 * 4), 32 * 32 * 200 * 4),
    ],
)
def test_small_model_in_every_format(quant, layers, table):
    _, breakdown = price(SMALL, quant, 32, 2)
    element = 4 if quant is NumberFormat.F32 else 2
    assert breakdown.layer_weight_bytes == layers
    assert breakdown.head_weight_bytes == table
    assert breakdown.embedding_weight_bytes == 0
    assert breakdown.kv_bytes == 2 * 32 * 3 * 2 * 40 * element
    assert breakdown.norm_bytes == 4 * (3 * 2 * 200 + 200)


def test_sums():
    _, breakdown = price(SMALL, NumberFormat.INT8, 32, 2)
    parts = (breakdown.weight_bytes, breakdown.kv_bytes, breakdown.workspace_bytes, breakdown.runtime_bytes)
    assert breakdown.peak_bytes == sum(parts)
    assert breakdown.total_bytes == sum(parts) + 64 * MIB


def test_a_larger_step_never_takes_less():
    sizes = [
        workspace_bytes(
            GLM_9B,
            ModelFormats.for_quantisation(NumberFormat.INT8),
            max_step_tokens=tokens,
            max_step_rows=rows,
            num_threads=2,
        )
        for tokens, rows in ((16, 1), (64, 1), (64, 32), (512, 32), (512, 256), (4096, 256))
    ]
    assert sizes == sorted(sizes)


def wide(*, vocab, tied, layers=1, intermediate=1024, interleaved=False):
    spec = decoder(
        num_layers=layers,
        hidden=1024,
        heads=8,
        kv_heads=1,
        head_dim=128,
        intermediate=intermediate,
        vocab=vocab,
        max_positions=4096,
        tied=tied,
    )
    rotary = RotarySpec(dimensions=128, interleaved=interleaved, inverse_frequencies=(1.0,) * 64)
    mixers = [replace(layer.mixer, rotary=rotary) for layer in spec.layers]
    return replace(
        spec, layers=tuple(replace(layer, mixer=mixer) for layer, mixer in zip(spec.layers, mixers, strict=True))
    )


def test_slices_of_a_load_count_where_pool_and_workspace_are_smaller():
    spec = wide(vocab=150_000, tied=True)
    _, small = price(spec, NumberFormat.INT8, 16, 1)
    _, large = price(spec, NumberFormat.INT8, 4096, 128)
    in_flight = loading_bytes(spec, ModelFormats.for_quantisation(NumberFormat.INT8), source_item_bytes=2)
    assert large.kv_bytes > in_flight > small.kv_bytes + small.workspace_bytes
    # Like the pool, its index is not there yet when slices are: the small load's (one block) is in their shadow.
    assert small.runtime_bytes - large.runtime_bytes == (
        in_flight - small.kv_bytes - small.workspace_bytes - 128 * 256 * 560
    )


ROW = 1024 + 4  # an int8 row of 1024 inputs, packed with its scale
# Rows that one layer packs, inputs of 1024 each: 1280 of qkv, 1024 of the output, gate and up, down.
LAYER = (1280 + 1024 + 2048 + 1024) * ROW


@pytest.mark.parametrize(
    ("spec", "item_bytes", "expected"),
    [
        # A small table, so that the last layer counts: down, alone and held while it is packed.
        (wide(vocab=1024, tied=True), 2, 1024 * 2048),
        # gate is held while up is read; up and down are still to be packed then.
        (wide(vocab=1024, tied=True), 4, 2 * 1024 * 4096 - 2 * 1024 * ROW),
        # A narrow MLP: the attention's output is held; gate, up and down (of 128 inputs) follow.
        (wide(vocab=1024, tied=True, intermediate=128), 4, 1024 * 4096 - 256 * ROW - 1024 * (128 + 4)),
        # One slice of a table, held while it is packed; the layer follows.
        (wide(vocab=30_000, tied=True), 2, 30_000 * 2048 - LAYER),
        # Two slices are held (32,768 rows fill one) while neither the second nor the layer is packed.
        (wide(vocab=50_000, tied=True), 2, 50_000 * 2048 - 17_232 * ROW - LAYER),
        # Of three slices the first two are the worst, if what is packed of the third is little enough.
        (wide(vocab=66_000, tied=True), 2, 65_536 * 2048 - (32_768 + 464) * ROW - LAYER),
        # A free head comes behind the embeddings, so that it is the one that counts.
        (wide(vocab=30_000, tied=False), 2, 30_000 * 2048 - LAYER),
        (wide(vocab=30_000, tied=True, layers=2), 2, 30_000 * 2048 - 2 * LAYER),
        # Permuted queries stand twice for a moment; keys, values, output, gate, up and down follow.
        (
            wide(vocab=1024, tied=True, intermediate=128, interleaved=True),
            4,
            2 * 1024 * 4096 - (256 + 1024 + 256) * ROW - 1024 * (128 + 4),
        ),
    ],
)
def test_slices_of_a_load_by_hand(spec, item_bytes, expected):
    formats = ModelFormats.for_quantisation(NumberFormat.INT8)
    found = loading_bytes(spec, formats, source_item_bytes=item_bytes)
    assert found == pytest.approx(expected, abs=64 * 1024)


def test_a_models_tables_do_not_count_where_many_layers_follow():
    formats = ModelFormats.for_quantisation(NumberFormat.INT8)
    assert loading_bytes(GLM_9B, formats, source_item_bytes=2) <= 2 * 64 * MIB


@pytest.mark.parametrize("budget", [64 * MIB, 3263 * MIB, 3264 * MIB, 3264 * MIB + 1, 3300 * MIB, 12345678901])
def test_the_largest_peak_of_a_budget_is_exact(budget):
    peak = largest_peak_bytes(budget)
    assert peak + headroom_bytes(peak) <= budget
    assert peak + 1 + headroom_bytes(peak + 1) > budget
