"""Tiny random models of every family and variant, and the tools to compare their exports with transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.records import TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from export.graph.archs import model_spec
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.calibrate.blocks import BlockRunner, get_weight, set_weight
from toolchain.numerics.plain_modules import plain_modules
from toolchain.source.checkpoint import SourceModel
from toolchain.source.empty_model import model_class
from toolchain.source.heads import open_model

COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1, 1.7, 2.0], "long_factor": [2.0, 3.0, 9.0],
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32}  # fmt: skip
ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1,
         "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
QWEN3_5 = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
TINY = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": False},
    "llama yarn": {"rope_parameters": YARN},
    "llama dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "olmo2": {"tie_word_embeddings": False},
    "smollm3": {"num_hidden_layers": 4},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
                "logits_scaling": 4.0, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0,
               "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 7},
    "phi3 longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    "stablelm": {"use_qkv_bias": True},
    "stablelm parallel": {"use_parallel_residual": True, "partial_rotary_factor": 0.5},
    "gpt_neox": {},
    "gpt_neox sequential": {"use_parallel_residual": False, "rotary_pct": 1.0},
    "opt": {"ffn_dim": 48},
    "phi": {},
    "phi tied": {"tie_word_embeddings": True},
    "starcoder2": {"sliding_window": 6},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True,
                  "head_dim": 16},
    "qwen3_moe window": {"num_experts": 6, "num_experts_per_tok": 1, "moe_intermediate_size": 20,
                         "use_sliding_window": True, "sliding_window": 6},
    "qwen3_moe dense": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16,
                        "num_hidden_layers": 4, "mlp_only_layers": [0], "decoder_sparse_step": 2,
                        "norm_topk_prob": True},
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral all experts": {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 6},
    "gemma": {"head_dim": 16},
    "internlm3": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "exaone4": {"num_hidden_layers": 4, "sliding_window": 6},
    "exaone4 global": {"sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": True},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6,
              "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default",
                                                                                "rope_theta": 5e3}}},
    "ernie4_5": {"head_dim": 16, "use_bias": True},
    "cohere2": {"num_hidden_layers": 4, "sliding_window": 6, "logit_scale": 0.3},
    "cohere2 untied": {"sliding_window": 6, "attention_bias": True, "tie_word_embeddings": False,
                       "layer_types": ["full_attention", "sliding_attention"]},
    "glm4": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": ALPHA},
    "ministral3": {"head_dim": 16, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5, "mscale": 1.0,
                                                       "mscale_all_dim": 1.0}},
    "ministral3 window": {"head_dim": 16, "sliding_window": 6, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 3}},
    "lfm2": {"num_hidden_layers": 3, "full_attn_idxs": [0], "block_multiple_of": 8, "conv_bias": True},
    "lfm2 wide": {"num_hidden_layers": 3, "layer_types": ["full_attention", "conv", "conv"], "conv_L_cache": 5,
                  "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"],
                 "num_dense_layers": 1, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
                 "routed_scaling_factor": 1.7},
    "lfm2_moe without bias": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
                              "num_dense_layers": 0, "num_experts": 5, "num_experts_per_tok": 3, "conv_L_cache": 4,
                              "moe_intermediate_size": 20, "use_expert_bias": False, "norm_topk_prob": False,
                              "conv_bias": True, "tie_word_embeddings": False},
    "gpt_oss": {"num_hidden_layers": 3, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2,
                "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
                "tie_word_embeddings": False},
    "gpt_oss clamped": {"num_local_experts": 4, "num_experts_per_tok": 4, "attention_bias": False, "swiglu_alpha": 0.7,
                        "swiglu_limit": 0.5, "head_dim": 8, "layer_types": ["full_attention"] * 2},
    "qwen3_5_text": {"num_hidden_layers": 4, "head_dim": 16, "layer_types": QWEN3_5, "linear_conv_kernel_dim": 4,
                     "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                     "linear_value_head_dim": 12, "tie_word_embeddings": True},
    "qwen3_5_text biased": {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "hidden_act": "gelu",
                            "linear_conv_kernel_dim": 2, "linear_num_key_heads": 3, "linear_num_value_heads": 3,
                            "linear_key_head_dim": 16, "linear_value_head_dim": 8, "attention_bias": True},
    "qwen3_5_moe_text": {"num_hidden_layers": 3, "head_dim": 16, "layer_types": QWEN3_5[1:], "linear_num_key_heads": 2,
                         "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                         "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                         "shared_expert_intermediate_size": 20},
    "gemma4_text": {"num_hidden_layers": 5, "head_dim": 8, "global_head_dim": 16, "sliding_window": 6,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
                                    "full_attention"],
                    "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 96, "num_kv_shared_layers": 2,
                    "use_double_wide_mlp": True, "final_logit_softcapping": 5.0},
    "gemma4_text large": {"num_hidden_layers": 3, "head_dim": 16, "global_head_dim": 8, "sliding_window": 6,
                          "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                          "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                          "attention_bias": True, "tie_word_embeddings": False},
    "gemma4_text experts": {"num_hidden_layers": 3, "head_dim": 8, "global_head_dim": 16, "sliding_window": 6,
                            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                            "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 96,
                            "num_kv_shared_layers": 0, "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2,
                            "moe_intermediate_size": 24},
    "gemma3n_text": {"num_hidden_layers": 5, "head_dim": 8, "sliding_window": 6,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention",
                                     "sliding_attention"],
                     "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 90, "num_kv_shared_layers": 2,
                     "intermediate_size": [48, 40, 48, 56, 48], "laurel_rank": 8, "altup_num_inputs": 3,
                     "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0, 0.3], "final_logit_softcapping": 5.0},
    "gemma3n_text other stream": {"num_hidden_layers": 2, "head_dim": 16, "layer_types": ["full_attention"] * 2,
                                  "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
                                  "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_active_idx": 1,
                                  "altup_num_inputs": 2, "altup_correct_scale": False, "attention_bias": True,
                                  "tie_word_embeddings": False},
    "mamba2": {"num_hidden_layers": 3, "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 12, "chunk_size": 8,
               "layer_norm_epsilon": 0.01},
    "mamba2 biased": {"num_heads": 4, "head_dim": 8, "expand": 1, "n_groups": 1, "state_size": 20, "chunk_size": 8,
                      "conv_kernel": 2, "use_bias": True, "hidden_act": "gelu", "tie_word_embeddings": True},
    "granitemoehybrid": {"num_hidden_layers": 3, "layer_types": QWEN3_5[1:], "num_local_experts": 5,
                         "num_experts_per_tok": 2, "intermediate_size": 24,
                         "shared_intermediate_size": 40, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12,
                         "mamba_chunk_size": 8, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                         "attention_multiplier": 0.2, "logits_scaling": 4.0, "tie_word_embeddings": True},
    "granitemoehybrid dense": {"layer_types": ["full_attention", "linear_attention"], "num_local_experts": 0,
                               "num_experts_per_tok": 0, "shared_intermediate_size": 48, "mamba_n_heads": 4,
                               "mamba_n_groups": 1, "mamba_d_state": 20, "mamba_chunk_size": 8, "mamba_d_conv": 2,
                               "mamba_proj_bias": True, "position_embedding_type": "rope", "attention_bias": True,
                               "attention_multiplier": 0.3, "mamba_conv_bias": False},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
                   "head_dim": 8, "ssm_state_size": 12, "mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 2,
                   "chunk_size": 8, "n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                   "moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 1.7},
    "nemotron_h dense": {"layers_block_type": ["full_attention", "mlp", "linear_attention", "mlp"], "head_dim": 16,
                         "ssm_state_size": 20, "mamba_num_heads": 4, "mamba_head_dim": 12, "n_groups": 1,
                         "chunk_size": 8, "conv_kernel": 2, "use_conv_bias": False, "use_bias": True,
                         "mlp_bias": True, "tie_word_embeddings": False},
    "falcon_h1": {"mamba_d_ssm": 48, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 12,
                  "mamba_chunk_size": 8, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.3,
                  "mlp_multipliers": [0.7, 0.4], "key_multiplier": 0.6, "attention_in_multiplier": 1.2,
                  "attention_out_multiplier": 0.8, "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.5,
                  "ssm_multipliers": [0.6, 0.9, 1.4, 0.7, 1.1]},
    "falcon_h1 normed": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 20,
                         "mamba_chunk_size": 8, "mamba_rms_norm": True, "mamba_norm_before_gate": True,
                         "mamba_d_conv": 2, "mamba_proj_bias": True, "projectors_bias": True, "attention_bias": True,
                         "mlp_bias": True, "tie_word_embeddings": True},
    "falcon_h1 gate first": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8,
                             "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_conv_bias": False},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 96, "bos_token_id": 1,
             "eos_token_id": 2},
}  # fmt: skip
TINY_ENCODERS = {
    "bert": {},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "modernbert": {"num_hidden_layers": 4, "local_attention": 4},
    "modernbert biased": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "local_attention": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "albert": {"embedding_size": 24, "num_hidden_layers": 4},
    "albert two groups": {"embedding_size": 24, "num_hidden_layers": 4, "num_hidden_groups": 2},
}
INTERPRETED = ("gemma3n_text",)  # the compiled engine has no steps for them
# experts picked by a router
MIXTURES = (
    "gpt_oss", "granitemoehybrid", "lfm2_moe", "mixtral", "nemotron_h", "olmoe", "qwen3_5_moe_text", "qwen3_moe"
)  # fmt: skip


def is_mixture(variant: str) -> bool:
    """Whether a variant's family has experts."""
    return variant.split()[0] in MIXTURES or variant == "gemma4_text experts"


def stores_norms_minus_one(family: str) -> bool:
    return family.startswith(("gemma", "qwen3_5")) and not family.startswith(("gemma3n", "gemma4"))


def tiny_model(variant: str, folder: Path, **more: object) -> None:
    """A random tiny model with non-trivial norms and biases, saved with a tokenizer of one-letter words.

    more: fields of the configuration beside those of the variant.
    """
    model_type = variant.split()[0]
    chosen = TINY[variant] if variant in TINY else TINY_ENCODERS[variant]
    config = AutoConfig.for_model(model_type, **{**({} if model_type == "gpt2" else COMMON), **chosen, **more})
    torch.manual_seed(0)
    model = (AutoModelForCausalLM if variant in TINY else AutoModel).from_config(config)
    centre = 0.0 if stores_norms_minus_one(model_type) else 1.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "norm" in name.lower() or "ln_" in name
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.3) + (centre if norm else 0))
        for name, p in model.named_buffers():
            if name in model.state_dict():  # a router's bias, a block's factor
                p.copy_(torch.randn_like(p) * 0.3 + ("scal" in name))
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
                 "post_processor": None, "decoder": {"type": "Fuse"},
                 "model": {"type": "WordLevel", "vocab": {chr(33 + i): i for i in range(90)} | {"<unk>": 90},
                           "unk_token": "<unk>"}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def random_text(path: Path) -> Path:
    path.write_text("".join(chr(33 + i) for i in np.random.default_rng(0).integers(0, 90, 4000)))
    return path


class FloatCheckpoint:
    """A Hugging Face folder as the exporter sees a quantized checkpoint, every tensor in float32 as it is."""

    def __init__(self, folder: Path) -> None:
        source, self.spec = open_model(folder)
        self.folder, self.config, self.manifest = folder, source.config, {}
        self._tensors = self._blocks(source) | self._outside(source)
        self.records = {n: TensorRecord(n, "float32", v.shape, v.nbytes) for n, v in self._tensors.items()}

    def _blocks(self, source: SourceModel) -> dict[str, np.ndarray]:
        """What the quantizer takes of each block: what transformers' own block has."""
        runner, found = BlockRunner(source, self.spec), {}
        for number in range(self.spec.blocks):
            prefix, block = self.spec.block_name(number), runner.load_block(number)
            linears = self.spec.names(number).linears()
            for name, parameter in block.named_parameters():
                module = name.removesuffix(".weight")
                linear = module in linears
                found[prefix + (module if linear else name)] = (
                    get_weight(block.get_submodule(module)) if linear else parameter.numpy()
                )
        return found

    def _outside(self, source: SourceModel) -> dict[str, np.ndarray]:
        found = {}
        for name, (rows, columns) in self.spec.outside().items():
            hidden = self.spec.position_offset if name == self.spec.position_embedding else 0
            found[name] = source.tensor(f"{name}.weight", (rows + hidden, columns)).numpy()[hidden:]
        return found | {n: source.tensor(n, shape).numpy() for n, shape in self.spec.outside_floats().items()}

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        return self._tensors[record_name]


def dequantized_model(source: Path, checkpoint: QuantizedCheckpoint):
    """transformers' model with the weights that the quantized checkpoint stands for."""
    spec = model_spec(checkpoint.config)
    kind = model_class(spec)
    model = kind.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    plain_modules(model)
    for name, record in checkpoint.records.items():
        module = model.get_output_embeddings() if spec.head and name == spec.head else None
        if record.scheme == "codebook":

            def part(suffix, name=name):
                try:
                    return checkpoint.tensor(name, suffix)
                except InputError:
                    return None

            values = StoredMatrix.restored(record, part).dequantized()
        elif record.scheme == "float16":
            values = checkpoint.tensor(name, ".weight").astype(np.float32)
        else:
            continue
        module = module or model.get_submodule(name)
        if name == spec.position_embedding:
            module.weight.data[spec.position_offset :] = torch.from_numpy(values)
        else:
            set_weight(module, values)
    return model


def compare(model, folder: Path, tolerance: float) -> None:
    """The exported folder in onnxruntime against transformers' model: prefill, decode with the cache, padded batch."""
    ours = OnnxRuntime(folder)
    vocabulary = model.config.get_text_config().vocab_size
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary, (1, 20))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    prefill, past = ours.run(ids[:, :19], np.ones((1, 19), np.int64), np.arange(19)[None], ours.empty())
    decode, _ = ours.run(ids[:, 19:], np.ones((1, 20), np.int64), np.array([[19]]), past)
    assert np.abs(np.concatenate([prefill, decode], 1) - expected).max() < tolerance
    batch, mask = rng.integers(0, vocabulary, (2, 10)), np.ones((2, 10), np.int64)
    mask[0, :4] = 0
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        given = (torch.from_numpy(array) for array in (batch, mask, positions))
        expected = model(input_ids=next(given), attention_mask=next(given), position_ids=next(given)).logits.numpy()
    padded, cache = ours.run(batch, mask, positions, ours.empty(2))
    assert np.abs((padded - expected)[mask > 0]).max() < tolerance
    assert all(np.isfinite(c).all() for c in cache)


def check_folded_export(source: Path, checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    """Norms and biases that took over a fold: the export is the checkpoint's model, and that is near the source."""
    exported = OnnxRuntime(folder)
    ids = np.arange(3, 23)[None]
    logits = exported.run(ids, np.ones_like(ids), np.arange(20)[None], exported.empty())[0]
    model = dequantized_model(source, checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # folded, and tuned
                parameter.copy_(torch.from_numpy(checkpoint.tensor(name, "")))
        expected = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-4
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():  # something folded wrongly would be far from it
        wanted = original(torch.from_numpy(ids)).logits.numpy()
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.9
