"""InternLM3: transformers runs it with Llama's own classes; only the configuration is another."""

from __future__ import annotations

from typing import Any

from export.graph.archs import llama
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    return llama.spec(config)
