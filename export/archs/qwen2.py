"""Qwen2 and Qwen2.5: Llama with biases on query, key and value; the window is used only when the config says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import windows
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config)
    config = dict(config)
    if not config.get("layer_types"):
        full = config.get("max_window_layers")
        full = base.layers if full is None else int(full)
        config["layer_types"] = ["full_attention" if i < full else "sliding_attention" for i in range(base.layers)]
    return replace(base, sliding_window=windows(config, base.layers, used=bool(config.get("use_sliding_window"))))
