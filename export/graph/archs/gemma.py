"""Gemma (the first): Llama with norms stored minus one, embeddings times sqrt(hidden_size), and mostly a tanh GELU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import refuse
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"use_bidirectional_attention": True})
    base = llama.spec(config)
    return replace(base, norm_offset=1.0, embedding_scale=base.hidden_size**0.5)
