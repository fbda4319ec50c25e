"""Falcon-H1: Mamba-2 and attention side by side in every block, with factors on what goes into and out of each part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import activation, flag, number, positive
from export.graph.archs._state_space import checked, limits
from export.graph.parts import StateSpace
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    positive(config, "mamba_chunk_size")  # of no matter to the values, but transformers divides by it
    base = llama.spec(config)
    gate_scale, feed_forward_scale = _numbers(config, "mlp_multipliers", 2)
    block = replace(
        base.block,
        mlp_norm="pre_ff_layernorm",
        gate="feed_forward.gate_proj",
        up="feed_forward.up_proj",
        down="feed_forward.down_proj",
        state_space=_state_space(config),
    )
    return replace(
        base,
        block=block,
        final_norm="model.final_layernorm",
        embedding_scale=number(config, "embedding_multiplier"),
        attention_input_scale=number(config, "attention_in_multiplier"),
        attention_output_scale=number(config, "attention_out_multiplier"),
        attention_scale=number(config, "key_multiplier") / math.sqrt(base.head_dim),
        gate_scale=gate_scale,
        feed_forward_scale=feed_forward_scale,
        logit_scale=number(config, "lm_head_multiplier"),
    )


def _state_space(config: dict[str, Any]) -> StateSpace:
    groups, normed = positive(config, "mamba_n_groups"), _truth(config, "mamba_rms_norm")
    gate, values, written, read, step = _numbers(config, "ssm_multipliers", 5)
    return checked(
        StateSpace(
            input="mamba.in_proj",
            output="mamba.out_proj",
            kernel="mamba.conv1d",
            rate="mamba.A_log",
            bias="mamba.dt_bias",
            skip="mamba.D",
            norm="mamba.norm" if normed else None,
            activation=activation(config, "hidden_act"),
            heads=positive(config, "mamba_n_heads"),
            groups=groups,
            head_dim=positive(config, "mamba_d_head"),
            state_size=positive(config, "mamba_d_state"),
            width=positive(config, "mamba_d_conv"),
            norm_groups=groups,
            gate_after_norm=normed and _truth(config, "mamba_norm_before_gate"),
            input_scale=number(config, "ssm_in_multiplier"),
            output_scale=number(config, "ssm_out_multiplier"),
            scales=(gate, values, written, read, step),
            **limits(config),  # type: ignore[arg-type]
        )
    )


def _truth(config: dict[str, Any], name: str) -> bool:
    """Field `name` as true or false, which null is, too."""
    return config[name] is not None and flag(config, name)


def _numbers(config: dict[str, Any], name: str, count: int) -> list[float]:
    """Field `name` as so many positive numbers."""
    found = config[name]
    if not isinstance(found, list | tuple) or len(found) != count:
        raise InputError(f"config.json: {name} must list {count} numbers, not {found!r}")
    return [number({name: value}, name) for value in found]
