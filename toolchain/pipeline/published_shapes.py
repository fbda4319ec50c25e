"""Configurations of published models, for `--random` and benchmarks: sizes as their config.json states them."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
_LLAMA_3 = {**_LLAMA, "rope_theta": 500000.0, "vocab_size": 128256, "max_position_embeddings": 131072}
_QWEN_3 = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "head_dim": 128, "vocab_size": 151936,
           "max_position_embeddings": 40960}  # fmt: skip
_QWEN_3_5 = {
    "model_type": "qwen3_5_text", "hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": 248320,
    "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
    "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "max_position_embeddings": 262144, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
}  # fmt: skip
_BERT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2,
         "pad_token_id": 0}  # fmt: skip
_MAMBA_2 = {"model_type": "mamba2", "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "head_dim": 64, "n_groups": 1,
            "state_size": 128, "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
            "vocab_size": 50288, "tie_word_embeddings": True}  # fmt: skip
_GRANITE_4 = {
    "model_type": "granitemoehybrid", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "position_embedding_type": "nope", "num_attention_heads": 12, "num_key_value_heads": 4, "mamba_n_heads": 48,
    "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256,
    "mamba_conv_bias": True, "mamba_proj_bias": False, "embedding_multiplier": 12.0, "vocab_size": 100352,
    "tie_word_embeddings": True,
}  # fmt: skip


def _attending(layers: int, where: tuple[int, ...]) -> list[str]:
    return ["full_attention" if number in where else "linear_attention" for number in range(layers)]


_NEMOTRON_BLOCKS = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
_NEMOTRON_NANO = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_LFM2_LAYERS = ["full_attention" if number in (2, 6, 10, 14, 18, 21) else "conv" for number in range(24)]
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "scribe-6m": {
        **_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    "lfm2.5-1.2b": {
        "model_type": "lfm2", "norm_eps": 1e-5, "rope_theta": 1000000.0, "hidden_size": 2048,
        "intermediate_size": 12288, "block_auto_adjust_ff_dim": True, "block_multiple_of": 256,
        "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "conv_L_cache": 3, "conv_bias": False,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
    },
    "lfm2-8b-a1b": {
        "model_type": "lfm2_moe", "norm_eps": 1e-5, "rope_theta": 1000000.0, "hidden_size": 2048,
        "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_dense_layers": 2, "num_experts": 32,
        "num_experts_per_tok": 4, "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0,
        "num_hidden_layers": 24, "layer_types": _LFM2_LAYERS, "conv_L_cache": 3, "conv_bias": False,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536, "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
    "qwen3-4b": {
        **_QWEN_3, "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        **_QWEN_3, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "qwen3.5-0.8b": {**_QWEN_3_5, "hidden_size": 1024, "intermediate_size": 3584},
    "qwen3.5-2b": {**_QWEN_3_5, "hidden_size": 2048, "intermediate_size": 6144},
    "olmoe-1b-7b": {
        "model_type": "olmoe", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_size": 2048,
        "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "vocab_size": 201088, "sliding_window": 128, "attention_bias": True,
        "rms_norm_eps": 1e-5, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
    "gemma-4-e2b": {
        "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
        "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256,
        "vocab_size": 262144, "vocab_size_per_layer_input": 262144, "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7, "final_logit_softcapping": 30.0,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "gemma-3n-e2b": {
        "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 30,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "num_kv_shared_layers": 10,
        "hidden_size_per_layer_input": 256, "vocab_size": 262400, "vocab_size_per_layer_input": 262144,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6, "sliding_window": 512,
        "altup_num_inputs": 4, "laurel_rank": 64, "final_logit_softcapping": 30.0, "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "mamba2-130m": {**_MAMBA_2, "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24},
    "mamba2-370m": {**_MAMBA_2, "hidden_size": 1024, "num_hidden_layers": 48, "num_heads": 32},
    "mamba2-1.3b": {**_MAMBA_2, "hidden_size": 2048, "num_hidden_layers": 48, "num_heads": 64},
    "mamba2-2.7b": {**_MAMBA_2, "hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80},
    "granite-4.0-h-350m": {
        **_GRANITE_4, "hidden_size": 768, "intermediate_size": 2048, "shared_intermediate_size": 2048,
        "num_local_experts": 0, "num_experts_per_tok": 0, "num_hidden_layers": 32, "mamba_d_head": 32,
        "layer_types": _attending(32, (10, 13, 17, 27)), "attention_multiplier": 0.015625, "logits_scaling": 3.0,
        "residual_multiplier": 0.246, "max_position_embeddings": 32768,
    },
    "granite-4.0-h-tiny": {
        **_GRANITE_4, "hidden_size": 1536, "intermediate_size": 512, "shared_intermediate_size": 1024,
        "num_local_experts": 64, "num_experts_per_tok": 6, "num_hidden_layers": 40, "mamba_d_head": 64,
        "layer_types": _attending(40, (5, 15, 25, 35)), "attention_multiplier": 0.0078125, "logits_scaling": 6.0,
        "residual_multiplier": 0.22, "max_position_embeddings": 131072,
    },
    "falcon-h1-1.5b": {
        "model_type": "falcon_h1", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e11, "hidden_size": 2048,
        "intermediate_size": 4608, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 128, "mamba_d_ssm": 3072, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_chunk_size": 256, "mamba_rms_norm": False, "vocab_size": 65537,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "nemotron-nano-9b-v2": {
        "model_type": "nemotron_h", "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "layer_norm_epsilon": 1e-5,
        "hidden_size": 4480, "intermediate_size": 15680, "num_hidden_layers": 56, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "ssm_state_size": 128, "mamba_num_heads": 128,
        "mamba_head_dim": 80, "n_groups": 8, "conv_kernel": 4, "chunk_size": 128, "max_position_embeddings": 131072,
        "layers_block_type": [_NEMOTRON_BLOCKS[kind] for kind in _NEMOTRON_NANO], "tie_word_embeddings": False,
    },
    "bert-base": {
        **_BERT, "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 30522,
    },
    "minilm": {  # all-MiniLM-L6-v2
        **_BERT, "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522,
    },
    "albert-base": {  # version 2
        **_BERT, "model_type": "albert", "hidden_act": "gelu_new", "embedding_size": 128, "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30000,
    },
}  # fmt: skip


def chosen_shape(choice: str) -> dict[str, Any]:
    """The configuration that `choice` names: NAME, or NAME:BLOCKS for a part of the model. Raises InputError."""
    name, _, blocks = choice.partition(":")
    if name not in SHAPES:
        raise InputError(f"--random {name!r} is unknown; choose one of {', '.join(SHAPES)}")
    shape = SHAPES[name]
    if not blocks:
        return shape
    most = shape["num_hidden_layers"]
    if not (blocks.isdecimal() and 1 <= int(blocks) <= most):
        raise InputError(f"--random {choice!r}: blocks are a number from 1 to {most}")
    cut: dict[str, Any] = {
        name: shape[name][: int(blocks)] for name in ("layer_types", "layers_block_type") if name in shape
    }
    if "num_kv_shared_layers" in shape:  # of those that are left
        cut["num_kv_shared_layers"] = max(0, int(blocks) - (most - shape["num_kv_shared_layers"]))
    return {**shape, **cut, "num_hidden_layers": int(blocks)}
