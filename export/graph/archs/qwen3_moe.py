"""Qwen3 with a mixture of experts: Qwen3's attention, and a feed-forward part that a router picks for every token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag, positive, window_everywhere
from export.graph.archs._experts import with_experts
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    if config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        raise InputError("config.json: layers without experts (mlp_only_layers, decoder_sparse_step) are not supported")
    base = llama.spec(config)
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    base = replace(
        base,
        block=block,
        norm_each_head=True,
        feed_forward=positive(config, "moe_intermediate_size"),
        sliding_window=window_everywhere(config, base.layers),
    )
    return with_experts(base, config, "num_local_experts", flag(config, "norm_topk_prob"))
