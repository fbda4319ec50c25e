"""Gemma 2: norms before and after each part, weights stored minus one, soft caps, a window on every other layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.archs import llama
from export.archs._config import activation, number, optional_number, positive, windows
from export.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    """ModelSpec of a Gemma 2 config; gemma3_text starts from it."""
    config = {"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096, **config}
    base = llama.spec(config)
    config.setdefault("layer_types", [f"{('sliding', 'full')[i % 2]}_attention" for i in range(base.layers)])
    block = replace(
        base.block,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
    name = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    return replace(
        base,
        block=block,
        activation=activation(config, name, "gelu_pytorch_tanh"),
        norm_offset=1.0,
        embedding_scale=base.hidden_size**0.5,
        attention_scale=number(config, "query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=optional_number(config, "attn_logit_softcapping", 50.0),
        logit_softcap=optional_number(config, "final_logit_softcapping", 30.0),
        sliding_window=windows(config, positive(config, "num_hidden_layers"), used=True),
    )
