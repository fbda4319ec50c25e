"""StarCoder2: Llama with LayerNorm, biases, a plain GELU feed-forward part and a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import activation, number, windows
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec({"tie_word_embeddings": True, **config})
    block = replace(base.block, gate=None, up="mlp.c_fc", down="mlp.c_proj")
    return replace(
        base,
        block=block,
        norm="layer",
        norm_epsilon=number(config, "norm_epsilon", 1e-5),
        activation=activation(config, "hidden_act", "gelu_pytorch_tanh"),
        sliding_window=windows({**config, "layer_types": None}, base.layers, used=True),
    )
