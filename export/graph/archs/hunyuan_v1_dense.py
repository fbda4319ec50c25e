"""Hunyuan (dense): Llama with an RMSNorm on every head of queries and keys, behind the rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import number, positive
from export.graph.archs._rope import rope_settings
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(_with_alpha(config))
    block = replace(base.block, query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm")
    return replace(base, block=block, norm_each_head=True, norm_after_rope=True)


def _with_alpha(config: dict[str, Any]) -> dict[str, Any]:
    """`alpha` beside "dynamic" stretches the base of the angles, whatever the length of the text."""
    settings = rope_settings(config)
    if settings["rope_type"] != "dynamic" or not settings.get("alpha"):
        return config
    head_dim = positive(config, "head_dim")
    theta = number(settings, "rope_theta") * number(settings, "alpha") ** (head_dim / (head_dim - 2))
    return {**config, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
