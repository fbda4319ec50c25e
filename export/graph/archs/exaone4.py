"""EXAONE 4: OLMo 2's norms behind each part, an RMSNorm on every head, no rotary positions in layers that see all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import olmo2
from export.graph.archs._config import windows
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = olmo2.spec(config)
    seen = windows(config, base.layers)
    plain = () if config["sliding_window"] is None else (i for i in range(base.layers) if not seen or seen[i] is None)
    return replace(base, norm_each_head=True, sliding_window=seen, layers_without_rope=frozenset(plain))
