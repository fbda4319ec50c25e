"""Granite (dense): Llama with multipliers on embeddings, residuals, attention scores and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import number
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    return replace(
        llama.spec(config),
        embedding_scale=number(config, "embedding_multiplier"),
        residual_scale=number(config, "residual_multiplier"),
        attention_scale=number(config, "attention_multiplier"),
        logit_scale=1.0 / number(config, "logits_scaling"),
    )
