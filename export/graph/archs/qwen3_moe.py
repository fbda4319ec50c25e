"""Qwen3 with a mixture of experts: Qwen3's attention, and in all or some layers experts that a router picks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag, positive, window_everywhere
from export.graph.archs._experts import picking
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config)
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    base = replace(
        base,
        block=block,
        norm_each_head=True,
        sliding_window=window_everywhere(config, base.layers),
    )
    dense, step = config["mlp_only_layers"], positive(config, "decoder_sparse_step")
    if not isinstance(dense, list):
        raise InputError(f"config.json: mlp_only_layers must be a list of layers, not {dense!r}")
    picks = [number not in dense and (number + 1) % step == 0 for number in range(base.layers)]
    if not any(picks):
        return base
    width, normalised = positive(config, "moe_intermediate_size"), flag(config, "norm_topk_prob")
    experts = picking(block, config, "num_local_experts", normalised, width)
    if all(picks):
        return replace(base, block=experts)
    return replace(base, block=experts, block_kinds=tuple(experts if picked else block for picked in picks))
