"""Qwen3.5 with a mixture of experts: its gated delta nets and attention, picked experts and a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import qwen3_5_text
from export.graph.archs._config import flag, positive
from export.graph.archs._experts import with_experts
from export.graph.parts import SharedExpert
from export.graph.spec import BlockNames, ModelSpec


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
    base = with_experts(base, config, "num_experts", normalised=True, width=width)
    return replace(base, block=_with(base.block, shared), block_kinds=tuple(_with(b, shared) for b in base.block_kinds))


def _with(names: BlockNames, shared: SharedExpert) -> BlockNames:
    assert names.experts is not None
    return replace(names, experts=replace(names.experts, shared=shared))
