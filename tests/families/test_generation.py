"""End-of-sequence ids and sampling defaults."""

import json

import pytest

from openautoglm.errors import CheckpointFormatError, ModelError
from openautoglm.families.generation import generation_defaults, read_generation_defaults


def test_generation_config_wins_over_config(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {
                "_from_model_config": True,
                "do_sample": True,
                "eos_token_id": [151329, 151336, 151338],
                "max_length": 128000,
                "pad_token_id": 151329,
                "temperature": 0.8,
                "top_p": 0.8,
                "top_k": 20,
                "repetition_penalty": 1.05,
                "transformers_version": "4.44.0",
            }
        )
    )
    defaults = read_generation_defaults(tmp_path, {"eos_token_id": 1})
    assert defaults.eos_token_ids == (151329, 151336, 151338)
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.8, 0.8, 20)
    assert defaults.repetition_penalty == 1.05
    assert defaults.not_honoured == ()


def test_without_the_file_config_counts(tmp_path):
    assert read_generation_defaults(tmp_path, {"eos_token_id": 2}).eos_token_ids == (2,)
    assert read_generation_defaults(tmp_path, {"text_config": {"eos_token_id": [5, 6]}}).eos_token_ids == (5, 6)
    assert read_generation_defaults(tmp_path, {}).eos_token_ids == ()
    assert read_generation_defaults(tmp_path, {}).temperature is None


def test_null_eos_falls_through():
    assert generation_defaults({"eos_token_id": None}, {"eos_token_id": 7}).eos_token_ids == (7,)


def test_no_sampling_is_greedy():
    assert generation_defaults({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {}).temperature == 0.0
    assert generation_defaults({"temperature": 0.7}, {}).temperature == 0.7
    assert generation_defaults({}, {}).temperature is None


def test_repeated_ids_stand_once():
    assert generation_defaults({"eos_token_id": [3, 2, 3]}, {}).eos_token_ids == (3, 2)


def test_what_is_not_honoured_is_named():
    values = {"typical_p": 0.9, "no_repeat_ngram_size": 3, "num_beams": 1, "suppress_tokens": None}
    assert set(generation_defaults(values, {}).not_honoured) == {"typical_p", "no_repeat_ngram_size"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.8"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("do_sample", "yes"),
        ("eos_token_id", "2"),
        ("eos_token_id", True),
        ("eos_token_id", -1),
        ("eos_token_id", [1, None]),
        ("eos_token_id", list(range(100))),
    ],
)
def test_bad_values_name_the_key(key, value):
    with pytest.raises(ModelError, match=key):
        generation_defaults({key: value}, {})


def test_malformed_file(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointFormatError, match="generation_config"):
        read_generation_defaults(tmp_path, {})
