"""Gemma 3 (text): Gemma 2 without soft caps, with a norm on every head and another rotation for window layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import gemma2
from export.graph.archs._rope import exported_context, rope, rope_settings
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    everywhere, near = (_one_type(config, f"{kind}_attention") for kind in ("full", "sliding"))
    base = gemma2.spec(everywhere)
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    base = replace(base, block=block, norm_each_head=True)
    if not base.sliding_window:
        return base
    context = min(base.context_length, exported_context(near))
    return replace(base, context_length=context, local_rope=rope(near, base.head_dim))


def _one_type(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The config as if every layer rotated as those of this type, as far as transformers reads it."""
    settings = {name: value for name, value in rope_settings(config)[kind].items() if name != "truncate"}
    return {**config, "rope_parameters": settings, "attn_logit_softcapping": None}  # its attention applies none
