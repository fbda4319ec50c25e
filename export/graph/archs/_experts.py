"""The feed-forward part of a family of decoders whose router picks experts: names and numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import positive
from export.graph.spec import BlockNames, Experts, ModelSpec


def with_experts(base: ModelSpec, config: dict[str, Any], count_field: str, normalised: bool) -> ModelSpec:
    """`base` with experts in place of its gate, up and down layers, named as numerics.experts has them."""
    experts = picked_experts(config, count_field, normalised)
    kinds = tuple(block_with(names, experts) for names in base.block_kinds)
    return replace(base, block=block_with(base.block, experts), block_kinds=kinds)


def picked_experts(config: dict[str, Any], count_field: str, normalised: bool) -> Experts:
    count, per_token = positive(config, count_field), positive(config, "num_experts_per_tok")
    if per_token > count:
        raise InputError(f"config.json: num_experts_per_tok ({per_token}) is more than the {count} experts")
    return Experts(count, per_token, normalised)


def block_with(names: BlockNames, experts: Experts) -> BlockNames:
    return replace(
        names,
        gate="mlp.experts.{expert}.gate_proj",
        up="mlp.experts.{expert}.up_proj",
        down="mlp.experts.{expert}.down_proj",
        experts=experts,
    )
