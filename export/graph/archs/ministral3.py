"""Ministral 3: Mistral whose queries grow by a logarithm of their position (`llama_4_scaling_beta`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import number, window_everywhere
from export.graph.archs._rope import rope_settings
from export.graph.spec import ModelSpec, QueryGrowth


def spec(config: dict[str, Any]) -> ModelSpec:
    base, settings = llama.spec(config), rope_settings(config)
    length = number(settings, "original_max_position_embeddings")
    beta = settings["llama_4_scaling_beta"]
    growth = None if beta == 0 else QueryGrowth(number(settings, "llama_4_scaling_beta"), length)
    return replace(base, query_growth=growth, sliding_window=window_everywhere(config, base.layers))
