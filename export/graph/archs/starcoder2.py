"""StarCoder2: Llama with LayerNorm, biases, a plain GELU feed-forward part and a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import check_dropout, window_everywhere
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    check_dropout(config, "residual_dropout", "embedding_dropout")
    base = llama.spec(config, norm_epsilon="norm_epsilon")
    block = replace(base.block, gate=None, up="mlp.c_fc", down="mlp.c_proj")
    return replace(
        base,
        block=block,
        norm="layer",
        sliding_window=window_everywhere(config, base.layers),
    )
