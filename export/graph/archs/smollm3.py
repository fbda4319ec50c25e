"""SmolLM3: Llama whose every fourth layer (`no_rope_layers`) has no rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config)
    rotated = config["no_rope_layers"]  # in spite of its name 1 means that the layer rotates
    if not isinstance(rotated, list) or len(rotated) < base.layers:
        raise InputError(f"config.json: no_rope_layers must list {base.layers} layers")
    return replace(
        base,
        layers_without_rope=frozenset(i for i, on in enumerate(rotated[: base.layers]) if not on),
        sliding_window=windows(config, base.layers),
    )
