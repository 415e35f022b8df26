"""Every known `model_type`: how its config.json is described and, where it can be loaded, how its tensors are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from openautoglm.checkpoint.json_files import JsonLimits, read_json
from openautoglm.errors import ModelError, UnknownModelTypeError, UnsupportedModelError
from openautoglm.families.common import MTP_KEYS
from openautoglm.families.config_reader import MAX_LAYERS, ConfigReader
from openautoglm.families.tensor_names import (
    CHATGLM_NAMES,
    GLM4_NAMES,
    GLM_NAMES,
    LLAMA_NAMES,
    PHI3_NAMES,
    QWEN3_NAMES,
    TensorNames,
)
from openautoglm.families.weight_map import build_weight_map
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.weights import WeightMap
from openautoglm.units import MIB

CONFIG_NAME = "config.json"
_CONFIG_LIMITS = JsonLimits(max_bytes=4 * MIB, max_depth=16, max_structure=200_000)
_QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _Family:
    """One model type: the module and the function that describe it, imported on use: most starts need one of them.

    `names` is None where it is described but not loaded.
    """

    module: str
    function: str
    names: TensorNames | None = None

    def describe(self, reader: ConfigReader) -> ArchSpec:
        """Describe a model of this type from its config."""
        function = getattr(import_module(f"openautoglm.families.{self.module}"), self.function)
        spec = function(reader)
        assert isinstance(spec, ArchSpec)
        return spec


_FAMILIES = {
    "chatglm": _Family("chatglm", "describe_chatglm", CHATGLM_NAMES),
    "gemma3_text": _Family("gemma", "describe_gemma3_text"),
    "glm": _Family("glm", "describe_glm", GLM_NAMES),
    "glm4": _Family("glm", "describe_glm4", GLM4_NAMES),
    "glm4_moe": _Family("moe", "describe_glm4_moe"),
    "glm4_moe_lite": _Family("mla", "describe_glm4_moe_lite"),
    "glm4v": _Family("vision", "describe_glm4v"),
    "glm4v_moe": _Family("vision", "describe_glm4v_moe"),
    "glm5_next": _Family("hybrid", "describe_glm5_next"),
    "glm_moe_dsa": _Family("mla", "describe_glm_moe_dsa"),
    "llama": _Family("llama", "describe_llama", LLAMA_NAMES),
    "mistral": _Family("mistral", "describe_mistral", LLAMA_NAMES),
    "phi": _Family("phi", "describe_phi"),
    "phi3": _Family("phi", "describe_phi3", PHI3_NAMES),
    "qwen2": _Family("qwen", "describe_qwen2", LLAMA_NAMES),
    "qwen3": _Family("qwen", "describe_qwen3", QWEN3_NAMES),
    "qwen3_moe": _Family("moe", "describe_qwen3_moe"),
}


def known_model_types() -> tuple[str, ...]:
    """Return every `model_type` that can be described, in alphabetical order."""
    return tuple(_FAMILIES)


def loadable_model_types() -> tuple[str, ...]:
    """Return every `model_type` whose tensors can be mapped, in alphabetical order."""
    return tuple(name for name, family in _FAMILIES.items() if family.names is not None)


def read_config(path: Path) -> dict[str, object]:
    """Read config.json of a checkpoint directory, or a config file given itself.

    At most 4 MiB and 16 levels of UTF-8 JSON without duplicate keys; raises `CheckpointFormatError` otherwise.
    """
    return read_json(path / CONFIG_NAME if path.is_dir() else path, limits=_CONFIG_LIMITS)


def describe(config: Mapping[str, object]) -> ArchSpec:
    """Describe the model of a config.json.

    Raises `UnknownModelTypeError`, `UnknownConfigKeyError` for a key that could change numerics and is not
    understood, `UnsupportedModelError` for quantised checkpoints, and `ModelError` naming a key with a bad value.
    """
    model_type, family = _family(config)
    _refuse_quantised(config)
    reader = ConfigReader(config)
    spec = family.describe(reader)
    reader.finish()
    if spec.model_type != model_type:
        raise AssertionError(f"{model_type} described as {spec.model_type}")
    return spec


def weight_map(spec: ArchSpec, config: Mapping[str, object], tensor_shapes: Mapping[str, tuple[int, ...]]) -> WeightMap:
    """Bind the tensors of a checkpoint (name to shape) to what the decoder of `spec` reads.

    Raises `MissingTensorError`, `UnexpectedTensorError` or `CheckpointFormatError` (wrong shape), each naming the
    tensor, and `UnsupportedModelError` for a model type that is described but not loaded.
    """
    model_type, family = _family(config)
    if family.names is None:
        raise UnsupportedModelError(
            f"{model_type} can be planned, not loaded: {', '.join(spec.features) or 'its tensors are not mapped'}",
            features=spec.features or ("tensor names",),
        )
    reader = ConfigReader(config)
    num_extra = max(reader.integer(name, 0, low=0, high=MAX_LAYERS) for name in MTP_KEYS)
    return build_weight_map(spec, family.names, tensor_shapes, num_extra_layers=num_extra)


def _family(config: Mapping[str, object]) -> tuple[str, _Family]:
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f"config key 'model_type' is missing: known are {', '.join(_FAMILIES)}")
    if not isinstance(model_type, str):
        raise ModelError(f"config key 'model_type' must be a word, got a {type(model_type).__name__}")
    if model_type not in _FAMILIES:
        raise UnknownModelTypeError(
            f"config key 'model_type' is {model_type[:_MAX_SHOWN]!r}, which is not known; "
            f"known are {', '.join(_FAMILIES)}"
        )
    return model_type, _FAMILIES[model_type]


def _refuse_quantised(config: Mapping[str, object]) -> None:
    found = [(key, config[key]) for key in _QUANTISATION_KEYS if config.get(key) is not None]
    if not found:
        return
    key, settings = found[0]
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    name = method[:_MAX_SHOWN] if isinstance(method, str) else "unknown method"
    raise UnsupportedModelError(
        f"config key {key!r}: the checkpoint is quantised already ({name}); "
        "use its bf16, fp16 or fp32 form and choose a format with --quant",
        features=(f"quantised checkpoint ({name})",),
    )
