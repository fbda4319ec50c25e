"""StableLM: Llama with LayerNorm, rotary positions on a quarter of each head, and parallel residuals on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import flag, refuse, rotated_heads
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"qk_layernorm": True})
    base = llama.spec(config, norm_epsilon="layer_norm_eps", partial=True)
    rotated_heads(config, base.hidden_size, base.heads)
    parallel = flag(config, "use_parallel_residual")
    return replace(
        base,
        block=replace(base.block, mlp_norm=None) if parallel else base.block,
        norm="layer",
        parallel_residual=parallel,
    )
