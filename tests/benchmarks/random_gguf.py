"""GGUF files of random float16 weights at a published shape, as llama.cpp names them: speed does not depend on values.

Kinds: llama, qwen2, olmoe, lfm2, qwen3_5_text. A shape goes through our own reading of its config.json, so that both
sides have the same sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.pipeline.published_shapes import chosen_shape
from toolchain.source.config import resolved_config

_NAMES = {"qwen3_5_text": "qwen35"}  # where llama.cpp's name of the kind is another
Config = dict[str, Any]


class RandomFile:
    """A GGUF under way: a vocabulary, and tensors of random or constant values."""

    def __init__(self, path: Path, config: Config) -> None:
        import gguf

        self.config, self._rng = config, np.random.default_rng(0)
        self.writer = gguf.GGUFWriter(str(path), _NAMES.get(config["model_type"], config["model_type"]))
        count = config["vocab_size"]
        self.writer.add_vocab_size(count)
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre("gpt-2")
        self.writer.add_token_list([f"t{i}" for i in range(count)])
        self.writer.add_token_types([gguf.TokenType.NORMAL] * count)
        self.writer.add_token_merges(["t 1"])

    def matrix(self, name: str, *size: int, kind: type = np.float16) -> None:
        """Normal values of deviation 0.02."""
        value = self._rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)
        self.writer.add_tensor(name, value.astype(kind))

    def constant(self, name: str, size: int, value: float = 1.0) -> None:
        """Norms and biases, which llama.cpp keeps in float32."""
        self.writer.add_tensor(name, np.full(size, value, np.float32))

    def feed_forward(self, block: str, inner: int) -> None:
        """A gated one."""
        hidden = self.config["hidden_size"]
        self.matrix(f"{block}ffn_gate.weight", inner, hidden)
        self.matrix(f"{block}ffn_up.weight", inner, hidden)
        self.matrix(f"{block}ffn_down.weight", hidden, inner)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _sizes(file: RandomFile, inner: int, head: int, key_heads: int | list[int], epsilon: float) -> None:
    c, writer = file.config, file.writer
    writer.add_context_length(4096)
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_rope_dimension_count(head)


def _ends(file: RandomFile, norm: str = "output_norm") -> None:
    c = file.config
    file.matrix("token_embd.weight", c["vocab_size"], c["hidden_size"])
    if not c["tie_word_embeddings"]:
        file.matrix("output.weight", c["vocab_size"], c["hidden_size"])
    file.constant(f"{norm}.weight", c["hidden_size"])


def _llama(file: RandomFile) -> None:
    """llama, qwen2 (biases) and olmoe (experts; norms of all queries and keys)."""
    c, experts = file.config, file.config.get("num_experts", 0)
    hidden, inner, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    pair = hidden // heads * c["num_key_value_heads"]
    _sizes(file, inner, hidden // heads, c["num_key_value_heads"], c["rms_norm_eps"])
    if experts:
        file.writer.add_expert_count(experts)
        file.writer.add_expert_used_count(c["num_experts_per_tok"])
    _ends(file)
    for i in range(c["num_hidden_layers"]):
        block = f"blk.{i}."
        for norm in ("attn_norm", "ffn_norm"):
            file.constant(f"{block}{norm}.weight", hidden)
        for name, rows in {"attn_q": hidden, "attn_k": pair, "attn_v": pair, "attn_output": hidden}.items():
            file.matrix(f"{block}{name}.weight", rows, hidden)
            if c["model_type"] == "qwen2" and name != "attn_output":
                file.constant(f"{block}{name}.bias", rows, 0.0)
        if not experts:
            file.feed_forward(block, inner)
            continue
        file.matrix(f"{block}ffn_gate_exps.weight", experts, inner, hidden)
        file.matrix(f"{block}ffn_up_exps.weight", experts, inner, hidden)
        file.matrix(f"{block}ffn_down_exps.weight", experts, hidden, inner)
        file.matrix(f"{block}ffn_gate_inp.weight", experts, hidden, kind=np.float32)
        file.constant(f"{block}attn_q_norm.weight", hidden)
        file.constant(f"{block}attn_k_norm.weight", pair)


def _lfm2(file: RandomFile) -> None:
    """Gated short convolutions, and attention where a layer has key heads."""
    c = file.config
    hidden, head = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
    attends = [kind == "full_attention" for kind in c["layer_types"]]
    inner = int(2 * c["intermediate_size"] / 3)
    inner = c["block_multiple_of"] * -(-inner // c["block_multiple_of"])
    _sizes(file, inner, head, [c["num_key_value_heads"] if one else 0 for one in attends], c["norm_eps"])
    file.writer.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
    file.writer.add_shortconv_l_cache(c["conv_L_cache"])
    _ends(file, "token_embd_norm")
    pair = head * c["num_key_value_heads"]
    for i, attention in enumerate(attends):
        block = f"blk.{i}."
        for norm in ("attn_norm", "ffn_norm"):
            file.constant(f"{block}{norm}.weight", hidden)
        file.feed_forward(block, inner)
        if attention:
            for name, rows in {"attn_q": hidden, "attn_k": pair, "attn_v": pair, "attn_output": hidden}.items():
                file.matrix(f"{block}{name}.weight", rows, hidden)
            for name in ("attn_q_norm", "attn_k_norm"):
                file.constant(f"{block}{name}.weight", head)
        else:
            file.matrix(f"{block}shortconv.conv.weight", hidden, c["conv_L_cache"], kind=np.float32)
            file.matrix(f"{block}shortconv.in_proj.weight", 3 * hidden, hidden)
            file.matrix(f"{block}shortconv.out_proj.weight", hidden, hidden)


def _qwen3_5(file: RandomFile) -> None:
    """A gated delta net in three of four layers, gated attention in the fourth."""
    c, writer = file.config, file.writer
    hidden, head, heads, key_heads = (
        c[n] for n in ("hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads")
    )
    rope = c["rope_parameters"]
    rotated = int(head * rope["partial_rotary_factor"])
    _sizes(file, c["intermediate_size"], rotated, key_heads, c["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_sections([rotated // 2 - 2 * (rotated // 6), rotated // 6, rotated // 6, 0])
    writer.add_key_length(head)
    writer.add_value_length(head)
    keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    value_heads = c["linear_num_value_heads"]
    values = value_heads * c["linear_value_head_dim"]
    writer.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    writer.add_ssm_inner_size(values)
    writer.add_ssm_state_size(c["linear_key_head_dim"])
    writer.add_ssm_time_step_rank(value_heads)
    writer.add_ssm_group_count(c["linear_num_key_heads"])
    writer.add_full_attention_interval(4)
    _ends(file)
    for i, kind in enumerate(c["layer_types"]):
        block = f"blk.{i}."
        for norm in ("attn_norm", "post_attention_norm"):
            file.constant(f"{block}{norm}.weight", hidden)
        file.feed_forward(block, c["intermediate_size"])
        if kind == "full_attention":
            rows = {"attn_q": 2 * heads * head, "attn_k": key_heads * head, "attn_v": key_heads * head}
            for name, count in rows.items():
                file.matrix(f"{block}{name}.weight", count, hidden)
            file.matrix(f"{block}attn_output.weight", hidden, heads * head)
            for name in ("attn_q_norm", "attn_k_norm"):
                file.constant(f"{block}{name}.weight", head)
            continue
        file.matrix(f"{block}attn_qkv.weight", 2 * keys + values, hidden)
        file.matrix(f"{block}attn_gate.weight", values, hidden)
        file.matrix(f"{block}ssm_conv1d.weight", 2 * keys + values, c["linear_conv_kernel_dim"], kind=np.float32)
        file.constant(f"{block}ssm_dt.bias", value_heads, 0.1)
        file.constant(f"{block}ssm_a", value_heads, -1.0)
        for name in ("ssm_beta", "ssm_alpha"):
            file.matrix(f"{block}{name}.weight", value_heads, hidden)
        file.constant(f"{block}ssm_norm.weight", c["linear_value_head_dim"])
        file.matrix(f"{block}ssm_out.weight", hidden, values)


_KINDS: dict[str, Callable[[RandomFile], None]] = {
    "llama": _llama, "qwen2": _llama, "olmoe": _llama, "lfm2": _lfm2, "qwen3_5_text": _qwen3_5,
}  # fmt: skip


def write_gguf(shape: str, path: Path) -> None:
    """A float16 GGUF of this shape. Raises SystemExit where the kind of model is not known here."""
    with tempfile.TemporaryDirectory() as scratch:
        config = resolved_config(chosen_shape(shape), Path(scratch) / "config.json")
    if config["model_type"] not in _KINDS:
        raise SystemExit(f"{shape}: a GGUF of {config['model_type']} is not known here; known: {', '.join(_KINDS)}")
    file = RandomFile(path, config)
    _KINDS[config["model_type"]](file)
    file.close()
