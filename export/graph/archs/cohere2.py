"""Command R7B and Command A: both parts read one LayerNorm without a bias; only layers with a window rotate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import number, windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config, norm_epsilon="layer_norm_eps")
    seen = windows(config, base.layers)
    return replace(
        base,
        block=replace(base.block, mlp_norm=None),
        norm="layer_without_bias",
        parallel_residual=True,
        logit_scale=number(config, "logit_scale"),
        rope_interleaved=True,
        sliding_window=seen,
        layers_without_rope=frozenset(i for i in range(base.layers) if not seen or seen[i] is None),
    )
