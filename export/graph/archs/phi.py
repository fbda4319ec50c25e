"""Phi-1 to Phi-2: parallel residuals behind one LayerNorm, plain GELU feed-forward, rotary positions on half a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import refuse
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"qk_layernorm": True})
    base = llama.spec(config, norm_epsilon="layer_norm_eps", partial=True)
    block = replace(
        base.block, attention_output="self_attn.dense", mlp_norm=None, gate=None, up="mlp.fc1", down="mlp.fc2"
    )
    return replace(
        base,
        block=block,
        norm="layer",
        parallel_residual=True,
        final_norm="model.final_layernorm",
        head_bias=True,
    )
