"""Gemma 3 (text): Gemma 2 without soft caps, with a norm on every head and another rotation for window layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import gemma2
from export.archs._config import number, positive, refuse
from export.archs._rope import rope, rope_settings
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"use_bidirectional_attention": True})
    layers = positive(config, "num_hidden_layers")
    every = positive(config, "sliding_window_pattern", 6)
    defaults = {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)],
    }
    config = {**defaults, **{k: v for k, v in config.items() if v is not None}}
    settings = rope_settings(config)
    by_type = "full_attention" in settings or "sliding_attention" in settings  # transformers 5
    if by_type:
        everywhere, local = (settings.get(f"{kind}_attention") or {} for kind in ("full", "sliding"))
    else:
        everywhere, local = settings, {"rope_theta": number(config, "rope_local_base_freq", 10000.0)}
    base = gemma2.spec({**config, "rope_parameters": None, "rope_scaling": None})
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    return replace(
        base,
        block=block,
        norm_each_head=True,
        rope=rope(config, base.head_dim, everywhere, theta=1_000_000.0),
        local_rope=rope({}, base.head_dim, local),
    )
