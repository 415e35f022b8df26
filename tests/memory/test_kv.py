"""KV bytes: blocks, indexer keys, recurrent state."""

from dataclasses import replace

import pytest

from openautoglm.errors import ConfigError
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe
from openautoglm.memory.kv import (
    can_have_kv_format,
    head_token_bytes,
    indexer_bytes_per_token,
    kv_block_bytes,
    kv_bytes_per_token,
    recurrent_state_bytes,
)
from openautoglm.native import _core
from openautoglm.spec.formats import KV_NUMBERS, NumberFormat


@pytest.mark.parametrize(("number", "size"), [(NumberFormat.BF16, 2), (NumberFormat.F32, 4)])
def test_plain_decoder(number, size):
    spec = describe(debug_config("glm"))
    assert kv_bytes_per_token(spec, number) == 3 * 2 * 2 * 32 * size  # layers, key and value, heads, head_dim
    assert kv_block_bytes(spec, number) == 16 * kv_bytes_per_token(spec, number)
    assert recurrent_state_bytes(spec) == 0


def test_sliding_layers_keep_every_position():
    plain = describe(debug_config("mistral") | {"sliding_window": None})
    sliding = describe(debug_config("mistral"))
    assert kv_block_bytes(sliding, NumberFormat.BF16) == kv_block_bytes(plain, NumberFormat.BF16)


def test_latents_and_indexers():
    spec = describe(debug_config("glm_moe_dsa"))
    assert kv_bytes_per_token(spec, NumberFormat.BF16) == 3 * (24 + 8) * 2
    assert indexer_bytes_per_token(spec, NumberFormat.BF16) == 2 * 16 * 2  # the shared layer keeps nothing
    assert kv_block_bytes(spec, NumberFormat.BF16) == 16 * (3 * 32 * 2 + 64)


def test_recurrent_layers_have_a_state_instead():
    spec = describe(debug_config("glm5_next"))
    assert kv_bytes_per_token(spec, NumberFormat.BF16) == 24 * 2  # one latent layer of four, no rotary part
    assert indexer_bytes_per_token(spec, NumberFormat.BF16) == (2 * 16 + 1) * 2  # key, gate and validity
    assert recurrent_state_bytes(spec) == 3 * 4 * (4 * 16 * 16 + 3 * 3 * 4 * 16)


@pytest.mark.parametrize("number", [NumberFormat.INT8, NumberFormat.FP8])
def test_bytes_and_a_scale_for_each_key_and_value(number):
    spec = describe(debug_config("glm"))
    assert kv_bytes_per_token(spec, number) == 3 * 2 * 2 * (32 + 4)
    odd = replace(spec, layers=tuple(replace(x, mixer=replace(x.mixer, head_dim=30)) for x in spec.layers))
    assert kv_bytes_per_token(odd, number) == kv_bytes_per_token(spec, number)  # rounded up to four


@pytest.mark.parametrize("number", KV_NUMBERS)
def test_heads_are_priced_as_the_native_core_lays_them_out(number):
    for head_dim in (2, 6, 30, 64, 80, 128, 256):
        assert _core.kv_head_bytes(str(number), head_dim) == 16 * head_token_bytes(number, head_dim)


@pytest.mark.parametrize("number", [NumberFormat.INT8, NumberFormat.FP8])
@pytest.mark.parametrize("family", ["glm_moe_dsa", "glm5_next"])
def test_latents_have_no_scaled_form(number, family):
    spec = describe(debug_config(family))
    with pytest.raises(ConfigError, match=f"latents, which have no {number} form: choose kv f32 or bf16"):
        kv_block_bytes(spec, number)
    assert not can_have_kv_format(spec, number)
    assert can_have_kv_format(spec, NumberFormat.F32)


@pytest.mark.parametrize("number", [NumberFormat.INT4, NumberFormat.NF4])
def test_other_formats_have_no_cache(number):
    with pytest.raises(ConfigError, match=str(number)):
        kv_block_bytes(describe(debug_config("glm")), number)
