"""GLM-4 (0414): norms before and behind each part, fused gate and up, neighbouring channels of half a head rotate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config, partial=True)
    block = replace(
        base.block,
        attention_post_norm="post_self_attn_layernorm",
        mlp_post_norm="post_mlp_layernorm",
        gate=None,
        up=None,
        fused_gate_up="mlp.gate_up_proj",
    )
    return replace(base, block=block, rope_interleaved=True)
