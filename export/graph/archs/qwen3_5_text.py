"""Qwen3.5: gated delta nets in most layers, gated attention in the others, as `layer_types` says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.contract.operators.causal_convolution import LEAST_WIDTH
from export.graph.archs import llama
from export.graph.archs._config import positive
from export.graph.parts import GatedDeltaNet
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    base = llama.spec(config, partial=True)
    attending = replace(base.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
    without: dict[str, Any] = dict.fromkeys(("query", "key", "value"))
    net = replace(base.block, **without, attention_output="linear_attn.out_proj", delta_net=delta_net(config))
    kinds = {"full_attention": attending, "linear_attention": net}
    return replace(
        base,
        block=attending,
        block_kinds=tuple(kinds[kind] for kind in layer_kinds(config, tuple(kinds))),
        norm_each_head=True,
        norm_offset=1.0,
        query_gate=True,
    )


def layer_kinds(config: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    """`layer_types`: one of the known kinds for each layer."""
    kinds, layers = config["layer_types"], positive(config, "num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"config.json: layer_types must list {layers} layers")
    for kind in kinds:
        if kind not in known:
            raise InputError(f"config.json: layer_types {kind!r} is not supported for {config.get('model_type')}")
    return kinds


def delta_net(config: dict[str, Any]) -> GatedDeltaNet:
    key_heads, value_heads = positive(config, "linear_num_key_heads"), positive(config, "linear_num_value_heads")
    width = positive(config, "linear_conv_kernel_dim")
    if value_heads % key_heads:
        raise InputError(
            f"config.json: linear_num_value_heads ({value_heads}) must be a multiple of linear_num_key_heads"
            f" ({key_heads})"
        )
    if width < LEAST_WIDTH:
        raise InputError("config.json: linear_conv_kernel_dim 1 is not supported: its state is empty")
    return GatedDeltaNet(
        qkv="linear_attn.in_proj_qkv",
        gate="linear_attn.in_proj_z",
        decay="linear_attn.in_proj_a",
        beta="linear_attn.in_proj_b",
        kernel="linear_attn.conv1d",
        rate="linear_attn.A_log",
        bias="linear_attn.dt_bias",
        norm="linear_attn.norm",
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=positive(config, "linear_key_head_dim"),
        value_dim=positive(config, "linear_value_head_dim"),
        width=width,
    )
