"""Qwen3.5 with a mixture of experts: its gated delta nets and attention, picked experts and a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import qwen3_5_text
from export.graph.archs._config import flag, positive
from export.graph.archs._experts import block_with, picked_experts
from export.graph.spec import ModelSpec, SharedExpert


def spec(config: dict[str, Any]) -> ModelSpec:
    if "output_router_logits" in config:
        flag(config, "output_router_logits")  # of no matter to the logits, but transformers checks it
    width = positive(config, "moe_intermediate_size")
    base = qwen3_5_text.spec({**config, "intermediate_size": width})
    shared = SharedExpert(
        gate="mlp.shared_expert.gate_proj",
        up="mlp.shared_expert.up_proj",
        down="mlp.shared_expert.down_proj",
        weight="mlp.shared_expert_gate",
        width=positive(config, "shared_expert_intermediate_size"),
    )
    experts = replace(picked_experts(config, "num_experts", normalised=True), concatenated=True, shared=shared)
    kinds = tuple(block_with(names, experts) for names in base.block_kinds)
    return replace(base, block=block_with(base.block, experts), block_kinds=kinds)
