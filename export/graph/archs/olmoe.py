"""OLMoE: Llama with RMSNorm over all queries and over all keys, and a mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag
from export.graph.archs._experts import with_experts
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    if config["clip_qkv"] is not None:
        raise InputError(f"config.json: clip_qkv {config['clip_qkv']!r} is not supported for olmoe")
    base = llama.spec(config)
    if base.heads * base.head_dim != base.hidden_size:  # its norm of the queries has that size
        raise InputError(f"config.json: head_dim must be hidden_size / num_attention_heads, not {base.head_dim}")
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    base = replace(base, block=block)
    return with_experts(base, config, "num_experts", flag(config, "norm_topk_prob"))
