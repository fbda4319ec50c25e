"""Phi-3 and Phi-4 (text): Llama with fused query-key-value and gate-up, partial rotary positions, longrope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import window_everywhere
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config, partial=True)
    block = replace(
        base.block, query=None, key=None, value=None, fused_qkv="self_attn.qkv_proj",
        gate=None, up=None, fused_gate_up="mlp.gate_up_proj",
    )  # fmt: skip
    return replace(base, block=block, sliding_window=window_everywhere(config, base.layers))
