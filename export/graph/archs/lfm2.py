"""LFM2: layers of gated short convolutions beside layers of attention, named in `layer_types`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag, optional_number, positive
from export.graph.parts import ShortConvolution
from export.graph.spec import BlockNames, ModelSpec

ATTENTION = BlockNames(
    attention_norm="operator_norm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    attention_output="self_attn.out_proj",
    mlp_norm="ffn_norm",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    return replace(without_width(config), feed_forward=_feed_forward(config))


def without_width(config: dict[str, Any]) -> ModelSpec:
    """All but the width of the feed-forward part, which is `intermediate_size` here."""
    base = llama.spec({**config, "hidden_act": "silu"}, norm_epsilon="norm_eps")
    convolution = ShortConvolution("conv.in_proj", "conv.conv", positive(config, "conv_L_cache"))
    without: dict[str, Any] = dict.fromkeys(("query", "key", "value", "query_norm", "key_norm"))
    convolving = replace(ATTENTION, **without, attention_output="conv.out_proj", convolution=convolution)
    return replace(
        base,
        block=ATTENTION,
        block_kinds=tuple(ATTENTION if kind == "full_attention" else convolving for kind in layer_kinds(config)),
        norm_each_head=True,
        final_norm="model.embedding_norm",
    )


def layer_kinds(config: dict[str, Any]) -> list[str]:
    """`layer_types`: "conv" or "full_attention" for each layer."""
    kinds, layers = config["layer_types"], positive(config, "num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"config.json: layer_types must list {layers} layers")
    for kind in kinds:
        if kind not in ("conv", "full_attention"):
            raise InputError(f"config.json: layer_types {kind!r} is not supported for {config.get('model_type')}")
    return kinds


def _feed_forward(config: dict[str, Any]) -> int:
    """Rows of the gate: two thirds of `intermediate_size`, times a factor, up to a whole number of blocks."""
    width = positive(config, "intermediate_size")
    if not flag(config, "block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    factor = optional_number(config, "block_ffn_dim_multiplier")
    if factor is None:
        return width
    block = positive(config, "block_multiple_of")
    return -(-int(factor * width) // block) * block
