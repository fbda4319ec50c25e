"""The feed-forward part of a family of decoders whose router picks experts: names and numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import positive
from export.graph.parts import Experts
from export.graph.spec import BlockNames, ModelSpec


def with_experts(
    base: ModelSpec, config: dict[str, Any], count_field: str, normalised: bool, width: int | None = None
) -> ModelSpec:
    """`base` with experts in every block in place of gate, up and down layers. width: of one, else of `base`."""

    def made(names: BlockNames) -> BlockNames:
        return picking(names, config, count_field, normalised, width or base.feed_forward)

    return replace(base, block=made(base.block), block_kinds=tuple(map(made, base.block_kinds)))


def picking(
    block: BlockNames, config: dict[str, Any], count_field: str, normalised: bool, width: int, inside: str = "mlp"
) -> BlockNames:
    """A block with experts, named as numerics.experts has them.

    inside: the module that has router and experts, "" for the block itself.
    """
    prefix = f"{inside}." if inside else ""
    count, per_token = positive(config, count_field), positive(config, "num_experts_per_tok")
    if per_token > count:
        raise InputError(f"config.json: num_experts_per_tok ({per_token}) is more than the {count} experts")
    return replace(
        block,
        gate=f"{prefix}experts.{{expert}}.gate_proj",
        up=f"{prefix}experts.{{expert}}.up_proj",
        down=f"{prefix}experts.{{expert}}.down_proj",
        experts=Experts(count, per_token, normalised, width, router=f"{prefix}gate"),
    )
