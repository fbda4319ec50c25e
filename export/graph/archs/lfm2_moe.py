"""LFM2 with experts in all but the first layers, picked by sigmoids and a bias of each expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import lfm2
from export.graph.archs._config import flag, number, positive
from export.graph.archs._experts import picking
from export.graph.spec import BlockNames, ModelSpec

INSIDE = "feed_forward"


def spec(config: dict[str, Any]) -> ModelSpec:
    base, dense = lfm2.without_width(config), config["num_dense_layers"]
    if type(dense) is not int:
        raise InputError(f"config.json: num_dense_layers must be a whole number, not {dense!r}")
    kinds = [names if number < dense else _with_experts(names, config) for number, names in enumerate(base.block_kinds)]
    return replace(base, block=kinds[-1], block_kinds=tuple(kinds))


def _with_experts(names: BlockNames, config: dict[str, Any]) -> BlockNames:
    width, normalised = positive(config, "moe_intermediate_size"), flag(config, "norm_topk_prob")
    found = picking(names, config, "num_experts", normalised, width, INSIDE)
    assert found.experts is not None
    experts = replace(
        found.experts,
        sigmoid=True,
        pick_bias=f"{INSIDE}.expert_bias" if flag(config, "use_expert_bias") else None,
        floor=1e-6 if normalised else 0.0,
        scale=number(config, "routed_scaling_factor"),
    )
    return replace(found, experts=experts)
