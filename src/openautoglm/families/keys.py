"""Keys of config.json that are known to change no logits, and keys that may stand only at their neutral value.

Everything else must be read by a family, or `ConfigReader.finish` refuses it by name.
"""

from __future__ import annotations

HARMLESS_KEYS = frozenset(
    {
        # provenance and bookkeeping; auto_map names code, which is never run
        "_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map",
        "custom_pipelines", "dtype", "finetuning_task", "is_decoder", "is_llama_config",
        "keys_to_ignore_at_inference", "language", "license", "model_type", "name_or_path", "tokenizer_class",
        "torch_dtype", "torchscript", "transformers_version", "transformers.js_config",
        "unsloth_fixed", "unsloth_version",
        # training
        "attention_dropout", "attn_pdrop", "bias_dropout_fusion", "classifier_dropout", "embd_pdrop",
        "gradient_checkpointing", "hidden_dropout", "hidden_dropout_prob", "initializer_range", "output_router_logits",
        "resid_pdrop", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef",
        # what a call returns, and how it runs
        "_flash_attn_2_enabled", "attention_softmax_in_fp32", "cache_implementation", "chunk_size_feed_forward",
        "fp32_residual_connection",
        "output_attentions", "output_hidden_states", "pretraining_tp", "return_dict", "tp_plan", "use_bfloat16",
        "use_cache",
        # labels of classifiers
        "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
        # token ids: read by `generation.py`, or marks of images and videos in the prompt
        "bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "image_end_token_id",
        "image_start_token_id", "image_token_id", "pad_token_id", "sep_token_id", "unk_token_id",
        "video_end_token_id", "video_start_token_id", "video_token_id",
        # sampling defaults that old files keep here; generation_config.json holds those that count
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix",
        "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature",
        "tf_legacy_loss", "top_k", "top_p", "typical_p",
        # lengths that tools note beside max_position_embeddings
        "max_sequence_length", "model_max_length", "tokenizer_model_max_length",
    }
)  # fmt: skip

NEUTRAL_KEYS: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "attn_logit_softcapping": (None,),
    "cross_attention_hidden_size": (None,),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (False,),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}
