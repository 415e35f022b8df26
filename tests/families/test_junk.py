"""Whatever a config says, describing it ends in a description or in a typed error; never in a stray exception."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openautoglm.errors import ModelError
from openautoglm.families.debug import debug_config
from openautoglm.families.generation import GenerationDefaults, generation_defaults
from openautoglm.families.registry import describe, known_model_types
from openautoglm.memory.kv import kv_block_bytes, recurrent_state_bytes
from openautoglm.memory.weights import num_active_parameters, num_parameters, weight_bytes
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats, NumberFormat

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.integers(-3, 40),
    st.floats(),
    st.sampled_from(["", "silu", "full_attention", "yarn", "linear", "llama3", "default", "8", "é", "FSS"]),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "rope_theta", "short_factor", "quant_method", "x"]), inner
        ),
    ),
    max_leaves=8,
)
NUMBER_FORMATS = (NumberFormat.BF16, NumberFormat.INT4)


def check(config):
    try:
        spec = describe(config)
    except ModelError:
        return
    assert isinstance(spec, ArchSpec)
    hash(spec)
    assert num_parameters(spec) >= num_active_parameters(spec) > 0
    assert kv_block_bytes(spec, NumberFormat.BF16) + recurrent_state_bytes(spec) > 0
    for number in NUMBER_FORMATS:
        assert weight_bytes(spec, ModelFormats.for_quantisation(number)).total > 0


@st.composite
def mutated(draw, model_type):
    """A debug config with up to three of its keys (nested ones too) replaced by junk or dropped."""
    config = debug_config(model_type)
    extra = ["rope_scaling", "rope_theta", "partial_rotary_factor", "layer_types", "quantization_config"]
    for _ in range(draw(st.integers(1, 3))):
        target = config
        nested = [value for value in config.values() if isinstance(value, dict)]
        if nested and draw(st.booleans()):
            target = draw(st.sampled_from(nested))
        if not target:
            continue
        key = draw(st.sampled_from([*sorted(target), *extra]))
        if draw(st.integers(0, 5)):
            target[key] = draw(JUNK)
        else:
            target.pop(key, None)
    return config


@pytest.mark.parametrize("model_type", known_model_types())
def test_junk_in_any_key(model_type):
    @settings(max_examples=120, deadline=None)
    @given(mutated(model_type))
    def run(config):
        check(config)

    run()


EXTREMES = (
    None,
    True,
    "x",
    [],
    {},
    0,
    -1,
    1,
    2,
    3,
    2**63,
    10**400,
    0.0,
    -0.5,
    1e-300,
    1e300,
    float("nan"),
    [1],
    {"a": 1},
)


@pytest.mark.parametrize("model_type", known_model_types())
def test_every_key_at_every_extreme(model_type):
    def paths(values, prefix=()):
        for key, value in values.items():
            yield (*prefix, key)
            if isinstance(value, dict):
                yield from paths(value, (*prefix, key))

    for path in paths(debug_config(model_type)):
        for value in EXTREMES:
            config = debug_config(model_type)
            target = config
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            check(config)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE_KEYS = (*LLAMA3, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
ROPE_VALUES = (*EXTREMES, 1.001, 1e-6, 1e6, 1e15, 4.0, 4.0000001)


@pytest.mark.parametrize("base", [YARN, LLAMA3], ids=["yarn", "llama3"])
@pytest.mark.parametrize("first", ROPE_KEYS)
def test_every_pair_of_rope_settings(base, first):
    for second in ROPE_KEYS:
        for one in ROPE_VALUES:
            for other in (1e-6, 1.001, 1e6, 1e15, 2, False):
                check({**debug_config("llama"), "rope_parameters": {**base, first: one, second: other}})


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["eos_token_id", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample"]),
        JUNK,
    )
)
def test_junk_in_generation_defaults(values):
    try:
        defaults = generation_defaults(values, {})
    except ModelError:
        return
    assert isinstance(defaults, GenerationDefaults)
