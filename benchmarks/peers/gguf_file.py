"""Writes a checkpoint as GGUF in bf16, without a tokenizer: llama.cpp takes token ids.

Names and layouts are those of llama.cpp's convert_hf_to_gguf.py. Families: llama, qwen3, glm, glm4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from openautoglm.checkpoint.index import Checkpoint

_EDGES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# GLM-4-0414 norms after attention and MLP as well, and its names for them are easily taken for one another.
_GLM4_NORMS = {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    name: str
    # llama.cpp rotates neighbouring values for these; checkpoints keep the two halves apart.
    interleave: bool = False


_ARCHITECTURES = {
    "llama": _Architecture(name="llama", interleave=True),
    "qwen3": _Architecture(name="qwen3"),
    "glm": _Architecture(name="chatglm"),
    "glm4": _Architecture(name="glm4"),
}


def write_gguf(checkpoint_directory: Path, config: Mapping[str, object], target: Path) -> None:
    """Write `target`. Holds one tensor at a time in memory."""
    architecture = _ARCHITECTURES[str(config["model_type"])]
    writer = gguf.GGUFWriter(target, architecture.name)
    _add_metadata(writer, config)
    with Checkpoint.open(checkpoint_directory) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            one_dimensional = len(tensor.shape) == 1
            writer.add_tensor_info(
                gguf_name(name),
                tensor.shape,
                np.dtype(np.float32 if one_dimensional else np.uint16),
                int(np.prod(tensor.shape)) * (4 if one_dimensional else 2),
                raw_dtype=gguf.GGMLQuantizationType.F32 if one_dimensional else gguf.GGMLQuantizationType.BF16,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in _tensors(checkpoint, config, architecture):
            writer.write_tensor_data(values)
    writer.close()


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a checkpoint's tensor."""
    if name in _EDGES:
        return _EDGES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{(_LAYER | _GLM4_NORMS)[stem]}.{kind}"


def _tensors(
    checkpoint: Checkpoint, config: Mapping[str, object], architecture: _Architecture
) -> Iterator[NDArray[np.uint16] | NDArray[np.float32]]:
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == "BF16", "the checkpoints made here are bf16"
        bits = checkpoint.read_rows(name, 0, tensor.num_rows).view(np.uint16)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if architecture.interleave and heads is not None:
            bits = interleave_halves(bits, int(str(config[heads])))
        if bits.ndim == 1:
            yield (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            yield bits


def interleave_halves(rows: NDArray[np.uint16], num_heads: int) -> NDArray[np.uint16]:
    """Reorder the rows of each head from (first half, second half) to neighbouring pairs."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, object]) -> None:
    def size(key: str) -> int:
        return int(str(config[key]))

    rope = config["rope_parameters"]
    assert isinstance(rope, dict)
    head_dim = size("head_dim")
    writer.add_block_count(size("num_hidden_layers"))
    writer.add_context_length(size("max_position_embeddings"))
    writer.add_embedding_length(size("hidden_size"))
    writer.add_feed_forward_length(size("intermediate_size"))
    writer.add_head_count(size("num_attention_heads"))
    writer.add_head_count_kv(size("num_key_value_heads"))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(float(str(config["rms_norm_eps"])))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(int(head_dim * float(rope.get("partial_rotary_factor", 1.0))))
    writer.add_vocab_size(size("vocab_size"))
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
