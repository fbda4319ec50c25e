"""ERNIE 4.5 (dense): Llama whose rotated pairs are neighbouring channels; `use_bias` gives every layer a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    return replace(llama.spec(config), rope_interleaved=True)
