"""generation_config.json: which tokens end an answer, and the sampling that the model's authors chose.

What stands there wins over config.json. Keys that change sampling and are not honoured are returned, never dropped in
silence; keys of other tools are tolerated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openautoglm.checkpoint.json_files import JsonLimits, read_json
from openautoglm.errors import ModelError
from openautoglm.families.config_reader import ConfigReader
from openautoglm.spec.sampling import SMALLEST_POSITIVE
from openautoglm.units import MIB

GENERATION_CONFIG_NAME = "generation_config.json"
_LIMITS = JsonLimits(max_bytes=1 * MIB, max_depth=16, max_structure=100_000)
_MAX_EOS_IDS = 64
_MAX_TOKEN_ID = 1 << 31

# sampling keys of transformers that this engine has no counterpart for, with the values at which they do nothing
_NOT_HONOURED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0.0),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
    "typical_p": (None, 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """End-of-sequence ids and sampling defaults; None means that the files say nothing.

    `do_sample` false makes `temperature` 0. `not_honoured` names sampling keys that were set and have no effect here.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    not_honoured: tuple[str, ...] = ()


def read_generation_defaults(directory: Path, config: Mapping[str, object]) -> GenerationDefaults:
    """Read the defaults of a checkpoint directory; `config` is its config.json.

    Raises `CheckpointFormatError` for a malformed file and `ModelError` naming a key with a bad value.
    """
    path = directory / GENERATION_CONFIG_NAME
    return generation_defaults(read_json(path, limits=_LIMITS) if path.is_file() else {}, config)


def generation_defaults(values: Mapping[str, object], config: Mapping[str, object]) -> GenerationDefaults:
    """Return the defaults of a generation_config.json's values over those of config.json."""
    reader = ConfigReader(values, path=f"{GENERATION_CONFIG_NAME}: ")
    sample = reader.flag("do_sample", True) if reader.has("do_sample") else True
    temperature = reader.optional_number("temperature", low=0.0, high=100.0)
    return GenerationDefaults(
        eos_token_ids=_eos_token_ids(values, config),
        temperature=temperature if sample else 0.0,
        top_p=reader.optional_number("top_p", low=SMALLEST_POSITIVE, high=1.0),
        top_k=reader.optional_integer("top_k", low=0, high=1 << 30),
        min_p=reader.optional_number("min_p", low=0.0, high=1.0),
        repetition_penalty=reader.optional_number("repetition_penalty", low=SMALLEST_POSITIVE, high=100.0),
        not_honoured=tuple(name for name, idle in _NOT_HONOURED.items() if name in values and values[name] not in idle),
    )


def _eos_token_ids(values: Mapping[str, object], config: Mapping[str, object]) -> tuple[int, ...]:
    text = config.get("text_config")
    sources = [values, config, text if isinstance(text, Mapping) else {}]
    for source in sources:
        found = source.get("eos_token_id")
        if found is not None:
            return _token_ids(found)
    return ()


def _token_ids(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    ids = [item for item in items if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_TOKEN_ID]
    if len(ids) != len(items) or len(ids) > _MAX_EOS_IDS:
        raise ModelError(f"config key 'eos_token_id' must be a token id or a list of at most {_MAX_EOS_IDS}")
    return tuple(dict.fromkeys(ids))
