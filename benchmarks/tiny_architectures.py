"""A tiny random model of every causal-LM type of the installed transformers, with windows that short prompts cross."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

#: Types of the installed transformers that `AutoModelForCausalLM` loads.
MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

VOCABULARY, HIDDEN, LAYERS, WINDOW, CONTEXT = 384, 32, 4, 16, 256

_HEADS = 4
_SIZES: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    (
        HIDDEN,
        "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size emb_dim embedding_dim input_embedding_size "
        "output_embedding_size lru_width attention_hidden_size",
    ),
    (
        2 * HIDDEN,
        "intermediate_size ffn_dim n_inner dff dim_ff d_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim "
        "intermediate_size_mlp mamba_d_ssm feed_forward_size dense_intermediate_size attention_hidden_size_mlp",
    ),
    (
        HIDDEN // 2,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank o_lora_rank "
        "hidden_size_per_layer_input laurel_rank router_hidden_size ple_embed_dim centroid_intermediate_top_k hc_lowrank",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers "
        "num_decoder_layers num_blocks",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads index_n_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads num_query_groups",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk top_k "
        "moe_k num_experts_per_token moe_num_shared_experts n_shared_experts num_shared_experts num_kv_shared_layers",
    ),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts n_group_experts zero_expert_num"),
    (
        HIDDEN // _HEADS,
        "head_dim d_head qk_nope_head_dim v_head_dim qk_rope_head_dim index_head_dim swa_head_dim "
        "linear_head_dim linear_key_head_dim linear_value_head_dim attention_head_size dim_head mamba_d_head mamba_head_dim "
        "query_pre_attn_scalar kv_channels d_rel rotary_dim state_size mamba_d_state ssm_state_size time_step_rank "
        "mamba_dt_rank "
        "adapter_rank gated_norm_rank loop_gate_rank",
    ),
    (2 * HIDDEN // _HEADS, "global_head_dim qk_head_dim"),
    (CONTEXT, "max_position_embeddings n_positions max_seq_len n_ctx context_length model_max_length seq_length"),
    (
        WINDOW,
        "sliding_window sliding_window_size window_size attention_chunk_size attention_window_size local_attention "
        "keep_window_size index_topk rel_extent local_attention_window_len floor_scale",
    ),
    (8, "chunk_size mamba_chunk_size block_size"),
    (1, "n_group topk_group first_k_dense_replace"),
]
_SMALL: dict[str, int] = {key: value for value, keys in _SIZES for key in keys.split()}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}

_MLA: dict[str, Any] = {"num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_WITH_MLA = [
    "axk1",
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note",
    "dots3_note_text",
    "glm4_moe_lite",
]
_WITH_MLA += ["glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"]
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
}
_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_GEMMA4: dict[str, Any] = {"layer_types": _MIXED, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
_HYBRID = ["mamba", "attention"] * (LAYERS // 2)
_LINEAR = ["linear_attention", "full_attention"] * (LAYERS // 2)
_ZAMBA = ["linear_attention", "hybrid"] * (LAYERS // 2)
_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 6.0, 8.0, 9.0]}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 48, **_FACTORS}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_DOTS3_WINDOW: dict[str, Any] = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_INDEXED: dict[str, Any] = {
    "layer_types": _LINEAR,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_UNSHARED: dict[str, Any] = {"num_kv_shared_layers": 0}

#: What a type needs besides: sizes that must fit each other, and choices that make its own layers run. `...` leaves a size
#: as it is by default.
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_WITH_MLA, _MLA),
    **dict.fromkeys(("bamba", "falcon_h1"), _MAMBA),
    "granitemoehybrid": {**_MAMBA, "layer_types": _HYBRID},
    "gemma4_text": {**_GEMMA4, "num_kv_shared_layers": 2},
    "gemma4_unified_text": {**_GEMMA4, "num_kv_shared_layers": 2},
    "gemma4": {"text_config": {"model_type": "gemma4_text", "num_kv_shared_layers": 2, **_GEMMA4}},
    "gemma4_unified": {"text_config": {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 2, **_GEMMA4}},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 4, "head_dim": ...},
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "bailing_hybrid": {"layer_types": _LINEAR, **_MLA},
    "kimi_linear": {"layer_types": _LINEAR, **_MLA},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"layer_types": _MIXED, "rope_parameters": dict.fromkeys(set(_MIXED), _ROPE)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "dots3_note": {
        "text_config": {"model_type": "dots3_note_text", **_MLA, **_DOTS3_WINDOW},
        "vision_config": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "dots3_note_text": {**_MLA, **_DOTS3_WINDOW},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": {"layer_types": _LINEAR},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 1},
    "qwen4_exp": {"text_config": {"model_type": "qwen4_exp_text", **_INDEXED}},
    "qwen4_exp_text": _INDEXED,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local"] * 4,
    },
    "zamba": {"layers_block_type": _ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {
        "layers_block_type": _ZAMBA,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
    **{name: {"layer_types": _LINEAR} for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
    **{
        name: {"text_config": {"model_type": f"{name}_text", "layer_types": _LINEAR}}
        for name in ("qwen3_5", "qwen3_5_moe")
    },
    **{
        name: {"is_decoder": True}
        for name in (
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
        )
    },
    "roc_bert": {
        "is_decoder": True,
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 64,
        "pronunciation_vocab_size": 64,
    },
    "xmod": {"default_language": "en_XX", "is_decoder": True},
}

_DRAFTS = "it drafts for another model, whose keys and values it reads"
_DECODER = "transformers builds its decoder of audio codes from the config of the whole model, which lacks its fields"

#: Types that have no tiny model of their own, and why.
NOT_BUILT = {
    "blt": "transformers cannot run it with a cache, as its config has no num_hidden_layers",
    "gemma3n": "its vision tower needs timm; gemma3n_text is its decoder",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _DECODER,
    "musicgen_melody": _DECODER,
}

#: The same type again with what its default config does not use.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4_text-unshared": ("gemma4_text", _UNSHARED),
    "gemma4_text-moe": (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "gpt_neo-64": ("gpt_neo", {"window_size": 64}),
    "gpt_oss-128": ("gpt_oss", {"sliding_window": 128}),
    "llama-dynamic": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": 48}),
    "llama-longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 48,
            }
        },
    ),
    "mistral-128": ("mistral", {"sliding_window": 128}),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 48}),
    "phimoe-longrope": ("phimoe", {"rope_parameters": {**_LONGROPE, "short_mscale": 1.0, "long_mscale": 1.2}}),
    "llama4_text-64": ("llama4_text", {"attention_chunk_size": 64}),
    "xlm-roberta-encoder": ("xlm-roberta", {"is_decoder": False}),
}


def cases() -> list[str]:
    """Every type, and the variants."""
    return [*MODEL_TYPES, *VARIANTS]


def _shrunk(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a small config of the same class; configs inside are shrunk too."""
    values = config.to_dict()
    names = set(values) | set(getattr(config, "attribute_map", {}))
    small: dict[str, Any] = {key: _SMALL[key] for key in names if key in _SMALL and values.get(key, 0) is not None}
    for key, value in values.items():
        if key.endswith("_config") and isinstance(value, dict) and hasattr(getattr(config, key), "to_dict"):
            inner = getattr(config, key)
            small[key] = {"model_type": inner.model_type, **_shrunk(inner, changes.get(key, {}))}
    small |= {key: value for key, value in _SPECIAL.items() if key in names}
    nested = {key for key in changes if key in small and isinstance(small[key], dict) and key.endswith("_config")}
    return small | {key: value for key, value in changes.items() if key not in nested}


def tiny_config(case: str, **changes: Any) -> Any:
    """The config of a case."""
    model_type, of_case = VARIANTS.get(case, (case, {}))
    of_type = {**CHANGES.get(model_type, {}), **of_case, **changes}
    drop = [key for key, value in of_type.items() if value is ...]
    arguments = _shrunk(AutoConfig.for_model(model_type), of_type)
    return AutoConfig.for_model(model_type, **{k: v for k, v in arguments.items() if k not in drop})


def tiny_model(case: str, **changes: Any) -> Any:
    """The model, in float32 on the CPU, with weights large enough for logits to differ between tokens and prompts."""
    config = tiny_config(case, **changes)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
