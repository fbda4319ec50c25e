"""Llama models as GGUF files and back: llama.cpp's names of tensors and its order of query and key rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
Tensors = dict[str, np.ndarray]


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    assert found is not None, name
    return f"blk.{found[1]}.{NAMES[found[2]]}.weight"


def rotary_rows(name: str, config: dict[str, Any]) -> np.ndarray | None:
    """Order of the rows of a query or key matrix in llama.cpp's interleaved rotary layout; None for other tensors."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return None
    rows = config[heads] * config["head_dim"]
    return np.arange(rows).reshape(config[heads], 2, -1).swapaxes(1, 2).ravel()


def write_gguf(source: Path, path: Path, split: str = "gpt-2") -> None:
    """A float32 GGUF of a Hugging Face Llama folder; split: llama.cpp's name of how its tokenizer splits text."""
    import gguf

    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    theta = (config.get("rope_parameters") or config).get("rope_theta")
    if theta:
        writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    special = {config["bos_token_id"], config["eos_token_id"]}
    kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]])
    writer.add_add_bos_token(False)
    for name, tensor in load_file(source / "model.safetensors").items():
        order = rotary_rows(name, config)
        value = tensor.astype(np.float32)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(value if order is None else value[order]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, source: Path) -> tuple[Tensors, float]:
    """Dequantized tensors under their Hugging Face names, and stored bits per weight over the blocks' matrices."""
    import gguf

    config = json.loads((source / "config.json").read_text())
    stored = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    tensors: Tensors = {}
    size = weights = 0
    for name, original in load_file(source / "model.safetensors").items():
        part = stored[gguf_name(name)]
        value = gguf.quants.dequantize(part.data, part.tensor_type).reshape(original.shape).astype(np.float32)
        order = rotary_rows(name, config)
        if order is not None:
            value[order] = value.copy()
        tensors[name] = value
        if "layers" in name and original.ndim == 2:
            size, weights = size + int(part.n_bytes), weights + original.size
    return tensors, 8 * size / weights
