"""StableLM: Llama with LayerNorm, rotary positions on a quarter of each head, and parallel residuals on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import number, refuse
from export.archs._rope import rope
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"qk_layernorm": True})
    base = llama.spec({**config, "rope_parameters": None, "rope_scaling": None, "partial_rotary_factor": None})
    parallel = bool(config.get("use_parallel_residual", False))
    return replace(
        base,
        block=replace(base.block, mlp_norm=None) if parallel else base.block,
        norm="layer",
        norm_epsilon=number(config, "layer_norm_eps", 1e-5),
        rope=rope(config, base.head_dim, partial=0.25),
        parallel_residual=parallel,
    )
