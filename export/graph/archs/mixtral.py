"""Mixtral: Mistral with a mixture of experts, whose weights always add up to one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import window_everywhere
from export.graph.archs._experts import with_experts
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec({name: value for name, value in config.items() if name != "head_dim" or value is not None})
    base = replace(base, sliding_window=window_everywhere(config, base.layers))
    return with_experts(base, config, "num_local_experts", normalised=True)
