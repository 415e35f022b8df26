"""Where families keep their tensors: names on disk, with `{layer}` for the layer's index.

Several names in one field are separate tensors stacked in that order; one name is a tensor that holds all rows, again
in that order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openautoglm.spec.weights import VectorRole


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Names of one family; a bias has its matrix's name with `.bias` for `.weight`.

    `qkv` and `gate_up` are bases without suffix. `norms` maps roles of layer norms to names, at least those that the
    family's descriptions have. `ignored` are endings of tensors that change nothing.
    """

    embedding: str
    head: str
    final_norm: str
    layer: str
    qkv: tuple[str, ...]
    output: str
    gate_up: tuple[str, ...]
    down: str
    norms: dict[VectorRole, str]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


_PRE_NORMS = {
    VectorRole.INPUT_NORM: "input_layernorm.weight",
    VectorRole.PRE_MLP_NORM: "post_attention_layernorm.weight",
}

LLAMA_NAMES = TensorNames(
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    final_norm="model.norm.weight",
    layer="model.layers.{layer}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norms=_PRE_NORMS,
)

QWEN3_NAMES = replace(
    LLAMA_NAMES,
    norms={
        **_PRE_NORMS,
        VectorRole.QUERY_NORM: "self_attn.q_norm.weight",
        VectorRole.KEY_NORM: "self_attn.k_norm.weight",
    },
)

GLM_NAMES = replace(LLAMA_NAMES, gate_up=("mlp.gate_up_proj",))

# post_attention_layernorm keeps its place before the MLP; the norms after the blocks have names of their own
GLM4_NAMES = replace(
    GLM_NAMES,
    norms={
        **_PRE_NORMS,
        VectorRole.POST_MIXER_NORM: "post_self_attn_layernorm.weight",
        VectorRole.POST_MLP_NORM: "post_mlp_layernorm.weight",
    },
)

PHI3_NAMES = replace(GLM_NAMES, qkv=("self_attn.qkv_proj",))

CHATGLM_NAMES = TensorNames(
    embedding="transformer.embedding.word_embeddings.weight",
    head="transformer.output_layer.weight",
    final_norm="transformer.encoder.final_layernorm.weight",
    layer="transformer.encoder.layers.{layer}.",
    qkv=("self_attention.query_key_value",),
    output="self_attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    norms=_PRE_NORMS,
    ignored=("rotary_pos_emb.inv_freq",),
)
