"""Gemma 3 (text): Gemma 2 without soft caps, with a norm on every head and another rotation for window layers.

EmbeddingGemma is one whose tokens see those behind them, too, as far as half the window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import gemma2
from export.graph.archs._config import positive
from export.graph.archs._rope import exported_context, of_layer_type, rope
from export.graph.archs._tasks import is_embedding
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    config = {**config, "attn_logit_softcapping": None}  # its attention applies none
    if config["use_bidirectional_attention"] is True and is_embedding(config):
        width = positive(config, "sliding_window") // 2 + 1
        config |= {"use_bidirectional_attention": False, "sliding_window": width}
    everywhere, near = (of_layer_type(config, f"{kind}_attention") for kind in ("full", "sliding"))
    base = gemma2.spec(everywhere)
    block = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    base = replace(base, block=block, norm_each_head=True)
    if not base.sliding_window:
        return base
    context = min(base.context_length, exported_context(near))
    return replace(base, context_length=context, local_rope=rope(near, base.head_dim))
