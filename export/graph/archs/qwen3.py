"""Qwen3 (dense): Llama with an RMSNorm on every head of queries and keys, before the rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import qwen2
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = qwen2.spec(config)
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    return replace(base, block=block, norm_each_head=True)
