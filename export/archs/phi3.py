"""Phi-3 and Phi-4 (text): Llama with fused query-key-value and gate-up, partial rotary positions, longrope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import windows
from export.archs._rope import rope, rope_settings
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    settings = dict(rope_settings(config))
    if settings.get("rope_type", settings.get("type")) == "yarn":
        settings["rope_type"] = "longrope"  # what the first Phi-3 checkpoints called it
    config = {**config, "rope_parameters": settings}
    base = llama.spec(config)
    block = replace(
        base.block, query=None, key=None, value=None, fused_qkv="self_attn.qkv_proj",
        gate=None, up=None, fused_gate_up="mlp.gate_up_proj",
    )  # fmt: skip
    return replace(
        base,
        block=block,
        rope=rope(config, base.head_dim),
        sliding_window=windows({**config, "layer_types": None}, base.layers, used=True),
    )
