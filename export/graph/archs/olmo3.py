"""OLMo 3: OLMo 2 with a sliding window and a rotation of its own in three of four layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import olmo2
from export.graph.archs._config import windows
from export.graph.archs._rope import exported_context, of_layer_type, rope
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    everywhere, near = (of_layer_type(config, f"{kind}_attention") for kind in ("full", "sliding"))
    base = olmo2.spec(everywhere)
    seen = windows(config, base.layers)
    if not seen:
        return base
    context = min(base.context_length, exported_context(near))
    return replace(base, sliding_window=seen, context_length=context, local_rope=rope(near, base.head_dim))
