"""Granite (dense): Llama with multipliers on embeddings, residuals, attention scores and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import number
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    return replace(
        llama.spec(config),
        embedding_scale=number(config, "embedding_multiplier"),
        residual_scale=number(config, "residual_multiplier"),
        attention_scale=number(config, "attention_multiplier"),
        logit_scale=1.0 / number(config, "logits_scaling"),
    )
