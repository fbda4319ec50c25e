"""Qwen2 and Qwen2.5: Llama with biases on query, key and value; windows by `layer_types`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config)
    return replace(base, sliding_window=windows(config, base.layers))
