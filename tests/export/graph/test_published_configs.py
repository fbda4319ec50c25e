"""config.json as publishers wrote it, every odd key kept and only the sizes shrunk: the logits of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.export.graph.config_sweep import Cell, Evaluator

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True, "attention_dropout": 0.0}  # fmt: skip
LAYERS = ["sliding_attention"] * 3 + ["full_attention"]
PUBLISHED: dict[str, dict[str, Any]] = {
    "the text_config of Gemma 4 E2B": {
        "attention_bias": False, "attention_k_eq_v": False, "dtype": "bfloat16", "enable_moe_block": False,
        "final_logit_softcapping": 30.0, "global_head_dim": 16, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 131072, "model_type": "gemma4_text", "moe_intermediate_size": None,
        "num_experts": None, "num_global_key_value_heads": None, "num_key_value_heads": 1, "num_kv_shared_layers": 2,
        "rms_norm_eps": 1e-06, "sliding_window": 5, "tie_word_embeddings": True, "top_k_experts": None,
        "use_bidirectional_attention": None, "use_double_wide_mlp": True, "vocab_size_per_layer_input": 96,
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
                                               "rope_type": "proportional"},
                            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
    },
    "the text_config of Gemma 3n E2B": {
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0], "altup_active_idx": 0, "altup_coef_clip": 120.0,
        "altup_correct_scale": True, "altup_lr_multiplier": 1.0, "altup_num_inputs": 4, "attention_bias": False,
        "final_logit_softcapping": 30.0, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 8, "intermediate_size": [48, 48, 48, 48], "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "max_position_embeddings": 32768,
        "model_type": "gemma3n_text", "num_kv_shared_layers": 2, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 5,
        "vocab_size_per_layer_input": 90,
    },
    "the text_config of Qwen3.5-0.8B": {
        "attention_bias": False, "attn_output_gate": True, "dtype": "bfloat16", "full_attention_interval": 4,
        "head_dim": 16, "hidden_act": "silu", "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
        "linear_value_head_dim": 8, "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
        "mlp_only_layers": [], "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False, "rms_norm_eps": 1e-06, "tie_word_embeddings": True,
        "rope_parameters": {"mrope_interleaved": True, "mrope_section": [1, 1, 0], "rope_type": "default",
                            "rope_theta": 10000000, "partial_rotary_factor": 0.25},
    },
    "c4ai-command-r7b-12-2024": {
        "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "cache_implementation": "hybrid",
        "head_dim": 8, "hidden_act": "silu", "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25,
        "max_position_embeddings": 132096, "model_type": "cohere2", "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0,
        "sliding_window": 5, "sliding_window_pattern": 4, "transformers_version": "4.48.0.dev0",
        "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
        "use_parallel_embedding": True,
    },
    "c4ai-command-a-03-2025": {
        "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "cache_implementation": "hybrid",
        "hidden_act": "silu", "layer_norm_eps": 1e-05, "layer_types": LAYERS, "logit_scale": 0.25,
        "max_position_embeddings": 131072, "model_type": "cohere2", "rope_theta": 50000, "sliding_window": 4,
        "use_qk_norm": False, "use_embedding_sharing": True,
    },
    "GLM-4-9B-0414": {
        "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "eos_token_id": [3, 4, 5], "head_dim": 16,
        "hidden_act": "silu", "max_position_embeddings": 32768, "model_type": "glm4", "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "num_key_value_heads": 2,
    },
    "GLM-4-32B-0414 with yarn": {
        "architectures": ["Glm4ForCausalLM"], "attention_bias": False, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 32768, "model_type": "glm4", "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"},
    },
    "EXAONE-4.0-1.2B": {
        "architectures": ["Exaone4ForCausalLM"], "head_dim": 16, "hidden_act": "silu", "model_type": "exaone4",
        "layer_types": ["full_attention"] * 4, "max_position_embeddings": 65536, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 1000000, "sliding_window": None, "sliding_window_pattern": None, "tie_word_embeddings": True,
    },
    "EXAONE-4.0-32B": {
        "architectures": ["Exaone4ForCausalLM"], "head_dim": 16, "hidden_act": "silu", "model_type": "exaone4",
        "layer_types": LAYERS, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 16, "rope_type": "llama3"},
        "rope_theta": 1000000, "sliding_window": 5, "sliding_window_pattern": "LLLG", "tie_word_embeddings": False,
    },
    "Olmo-3-1025-7B": {
        "architectures": ["Olmo3ForCausalLM"], "attention_bias": False, "bos_token_id": None, "hidden_act": "silu",
        "layer_types": LAYERS, "max_position_embeddings": 65536, "model_type": "olmo3", "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                         "original_max_position_embeddings": 16, "rope_type": "yarn"},
        "rope_theta": 500000, "sliding_window": 5, "tie_word_embeddings": False, "use_cache": False,
    },
    "ERNIE-4.5-0.3B-PT": {
        "architectures": ["Ernie4_5ForCausalLM"], "head_dim": 16, "hidden_act": "silu", "model_type": "ernie4_5",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "use_bias": False, "compression_ratio": 1.0,
        "auto_map": {"AutoConfig": "configuration_ernie4_5.Ernie4_5_Config"},
    },
    "Hunyuan-0.5B-Instruct": {
        "architectures": ["HunYuanDenseV1ForCausalLM"], "add_classification_head": False, "anyres_pooling_size": 2,
        "attention_bias": False, "attention_head_dim": 16, "cla_share_factor": 2, "class_num": 0, "eod_token_id": 3,
        "head_dim": 16, "hidden_act": "silu", "im_end_id": 5, "max_position_embeddings": 262144, "mlp_bias": False,
        "model_type": "hunyuan_v1_dense", "norm_type": "rms", "org_vocab_size": 96, "pool_type": "last",
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "type": "dynamic"},
        "sep_token_id": 4, "use_cla": False, "use_qk_norm": True, "use_rotary_pos_emb": True,
    },
    "LFM2-1.2B": {
        "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True, "block_dim": 32, "block_ff_dim": 72,
        "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 16, "block_norm_eps": 1e-05, "block_use_swiglu": True,
        "conv_L_cache": 3, "conv_bias": False, "conv_dim": 32, "conv_dim_out": 32, "conv_use_xavier_init": True,
        "eos_token_id": 7, "full_attn_idxs": [1, 3], "max_position_embeddings": 128000, "model_type": "lfm2",
        "norm_eps": 1e-05, "num_heads": 4, "rope_theta": 1000000.0, "use_pos_enc": True,
    },
    "LFM2.5-1.2B-Instruct": {
        "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True, "block_dim": 32, "block_ff_dim": 72,
        "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 16, "conv_L_cache": 3, "conv_bias": False,
        "eos_token_id": 7, "layer_types": ["conv", "full_attention", "conv", "conv"], "model_type": "lfm2",
        "max_position_embeddings": 128000, "norm_eps": 1e-05, "rope_parameters": {"rope_theta": 1000000.0,
        "rope_type": "default"}, "tie_embedding": False,
    },
    "LFM2-8B-A1B": {
        "architectures": ["Lfm2MoeForCausalLM"], "conv_L_cache": 3, "conv_bias": False, "dtype": "bfloat16",
        "eos_token_id": 7, "layer_types": ["conv", "conv", "full_attention", "conv"], "max_position_embeddings": 128000,
        "model_type": "lfm2_moe", "moe_intermediate_size": 20, "norm_eps": 1e-05, "norm_topk_prob": True,
        "num_dense_layers": 2, "num_experts": 8, "num_experts_per_tok": 4, "rope_theta": 1000000.0,
        "routed_scaling_factor": 1.0, "tie_embedding": True, "use_expert_bias": True,
    },
    "mamba2-130m-hf": {
        "architectures": ["Mamba2ForCausalLM"], "chunk_size": 256, "conv_kernel": 4, "expand": 2, "head_dim": 16,
        "hidden_act": "silu", "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 1,
        "norm_before_gate": True, "num_heads": 4, "rescale_prenorm_residual": False, "residual_in_fp32": True,
        "rms_norm": True, "state_size": 16, "tie_word_embeddings": True, "time_step_floor": 0.0001,
        "time_step_limit": [0.0, float("inf")],
        "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 48, "use_bias": False, "use_conv_bias": True,
    },
    "granite-4.0-h-350m": {
        "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12, "hidden_act": "silu", "init_method": "mup", "logits_scaling": 3,
        "layer_types": ["mamba", "attention", "mamba", "mamba"], "mamba_chunk_size": 256, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_n_groups": 1,
        "mamba_n_heads": 4, "mamba_proj_bias": False, "max_position_embeddings": 32768,
        "model_type": "granitemoehybrid", "normalization_function": "rmsnorm", "num_experts_per_tok": 0,
        "num_local_experts": 0, "output_router_logits": False, "position_embedding_type": "nope",
        "residual_multiplier": 0.246, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000,
        "router_aux_loss_coef": 0.01, "shared_intermediate_size": 40, "tie_word_embeddings": True,
    },
    "granite-4.0-h-tiny": {
        "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False, "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12, "hidden_act": "silu", "intermediate_size": 16, "logits_scaling": 6,
        "layer_types": ["mamba", "mamba", "attention", "mamba"], "mamba_chunk_size": 256, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_n_groups": 1,
        "mamba_n_heads": 4, "mamba_proj_bias": False, "max_position_embeddings": 131072,
        "model_type": "granitemoehybrid", "num_experts_per_tok": 3, "num_local_experts": 8,
        "position_embedding_type": "nope", "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_theta": 10000,
        "shared_intermediate_size": 24, "tie_word_embeddings": True,
    },
    "NVIDIA-Nemotron-Nano-9B-v2": {
        "architectures": ["NemotronHForCausalLM"], "attention_bias": False, "chunk_size": 128, "conv_kernel": 4,
        "expand": 2, "head_dim": 16, "hidden_dropout": 0.0, "hybrid_override_pattern": "M-*-", "mamba_head_dim": 8,
        "mamba_hidden_act": "silu", "mamba_num_heads": 6, "mamba_proj_bias": False, "max_position_embeddings": 131072,
        "mlp_bias": False, "mlp_hidden_act": "relu2", "model_type": "nemotron_h", "n_groups": 2,
        "num_logits_to_keep": 1, "rescale_prenorm_residual": True, "residual_in_fp32": False, "rms_norm_eps": 1e-05,
        "sliding_window": None, "ssm_state_size": 16, "tie_word_embeddings": False, "time_step_floor": 0.0001,
        "time_step_limit": [0.0, float("inf")], "time_step_max": 0.1, "time_step_min": 0.001, "use_bias": False,
        "use_conv_bias": True, "use_mamba_kernels": True,
    },
    "Falcon-H1-0.5B": {
        "architectures": ["FalconH1ForCausalLM"], "attention_bias": False, "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 0.9375, "embedding_multiplier": 5.656854249492381, "head_dim": 16,
        "hidden_act": "silu", "key_multiplier": 0.39, "lm_head_multiplier": 0.039, "mamba_chunk_size": 128,
        "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 12, "mamba_d_ssm": 48, "mamba_d_state": 16,
        "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 4, "mamba_norm_before_gate": False,
        "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_use_mlp": True, "max_position_embeddings": 16384,
        "mlp_bias": False, "mlp_expansion_factor": 8, "mlp_multipliers": [0.88, 0.59], "model_type": "falcon_h1",
        "num_logits_to_keep": 1, "projectors_bias": False, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 100000000000.0, "ssm_in_multiplier": 1.25, "ssm_multipliers": [0.35, 0.25, 0.35, 0.5, 0.35],
        "ssm_out_multiplier": 0.23, "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B with dense layers": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 16,
        "hidden_act": "silu", "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [1, 3],
        "model_type": "qwen3_moe", "moe_intermediate_size": 24, "norm_topk_prob": True, "num_experts": 8,
        "num_experts_per_tok": 3, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    "gemma-2b": {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "head_dim": 16, "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "model_type": "gemma",
        "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
        "eos_token_id": 1, "bos_token_id": 2,
    },
    "gemma-7b, hidden_activation null": {
        "architectures": ["GemmaForCausalLM"], "head_dim": 16, "hidden_act": "gelu_pytorch_tanh", "model_type": "gemma",
        "hidden_activation": None, "max_position_embeddings": 8192, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    },
    "internlm3-8b-instruct": {
        "architectures": ["InternLM3ForCausalLM"], "bias": False, "eos_token_id": [2, 3], "head_dim": 16,
        "auto_map": {"AutoConfig": "configuration_internlm3.InternLM3Config",
                     "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM"},
        "hidden_act": "silu", "max_position_embeddings": 32768, "model_type": "internlm3", "qkv_bias": False,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000,
        "tie_word_embeddings": False,
    },
    "internlm3 with biases": {
        "bias": True, "qkv_bias": True, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 32768,
        "model_type": "internlm3", "rms_norm_eps": 1e-05, "rope_theta": 50000000, "tie_word_embeddings": False,
    },
    "Ministral-3-3B, the text part alone": {
        "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 262144, "model_type": "ministral3",
        "rms_norm_eps": 1e-05, "sliding_window": None, "tie_word_embeddings": True,
        "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
                            "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn"},
    },
    "Ministral-3-3B, its original context five tokens long": {
        "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 262144, "model_type": "ministral3",
        "rms_norm_eps": 1e-05, "sliding_window": None, "tie_word_embeddings": True,
        "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 5,
                            "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn"},
    },
    "ModernBERT-base": {
        "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "classifier_activation": "gelu",
        "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 1,
        "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "gradient_checkpointing": False,
        "hidden_activation": "gelu", "initializer_cutoff_factor": 2.0, "layer_norm_eps": 1e-05, "local_attention": 6,
        "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0,
        "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "position_embedding_type": "absolute",
        "reference_compile": None, "sep_token_id": 2, "tie_word_embeddings": True,
    },
    "bge-m3": {
        "architectures": ["XLMRobertaModel"], "attention_probs_dropout_prob": 0.1, "classifier_dropout": None,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-05, "max_position_embeddings": 8194,
        "model_type": "xlm-roberta", "output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute",
        "type_vocab_size": 1, "eos_token_id": 2, "bos_token_id": 0,
    },
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "experts_per_token": 2, "head_dim": 16,
        "hidden_act": "silu", "initial_context_length": 4096, "max_position_embeddings": 131072,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "model_type": "gpt_oss", "num_experts_per_tok": 2,
        "num_local_experts": 4, "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 150000,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False,
                         "original_max_position_embeddings": 4096},
        "router_aux_loss_coef": 0.9, "sliding_window": 5, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_what_it_is_to_transformers(name, tmp_path):
    config = {**SIZES, **PUBLISHED[name]}
    evaluator = Evaluator(config["model_type"], tmp_path)
    different, refusal = evaluator.difference(Cell(config["model_type"], name, "published", config))
    assert not different and not refusal
    theirs = evaluator.transformers(tmp_path / "cell")  # with the weights that were compared last
    assert theirs.values is not None, theirs.refusal
