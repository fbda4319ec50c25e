"""Mistral: Llama with a sliding attention window on every layer (null in later releases), or by `layer_types`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import window_everywhere, windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config)
    by_layer = windows if "layer_types" in config else window_everywhere  # Ministral, which calls itself mistral too
    return replace(base, sliding_window=by_layer(config, base.layers))
