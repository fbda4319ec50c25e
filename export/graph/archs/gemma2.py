"""Gemma 2: norms before and after each part, weights stored minus one, soft caps, a window on every other layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import number, optional_number, refuse, windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    """ModelSpec of a Gemma 2 config; gemma3_text starts from it."""
    refuse(config, {"use_bidirectional_attention": True})
    base = llama.spec(config, hidden_act="hidden_activation")
    block = replace(
        base.block,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
    return replace(
        base,
        block=block,
        norm_offset=1.0,
        embedding_scale=base.hidden_size**0.5,
        attention_scale=number(config, "query_pre_attn_scalar") ** -0.5,
        attention_softcap=optional_number(config, "attn_logit_softcapping"),
        logit_softcap=optional_number(config, "final_logit_softcapping"),
        sliding_window=windows(config, base.layers),
    )
