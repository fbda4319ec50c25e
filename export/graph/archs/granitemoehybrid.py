"""Granite 4: Mamba-2 in most layers, attention in the others, picked experts beside a part that all tokens pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import granite
from export.graph.archs._config import activation, positive
from export.graph.archs._experts import picking
from export.graph.archs._state_space import checked, limits
from export.graph.archs.qwen3_5_text import layer_kinds
from export.graph.parts import SharedExpert, StateSpace
from export.graph.spec import BlockNames, ModelSpec

INSIDE, SHARED_UP, SHARED_DOWN = "block_sparse_moe", "shared_mlp.input_linear", "shared_mlp.output_linear"
_ANY_ROTATION = {"rope_type": "default", "rope_theta": 10000.0}  # of a model that has none


def spec(config: dict[str, Any]) -> ModelSpec:
    positive(config, "mamba_chunk_size")  # of no matter to the values, but transformers divides by it
    rotates = config["position_embedding_type"] == "rope"
    base = granite.spec(config if rotates else {**config, "rope_parameters": _ANY_ROTATION})
    attending = _with_feed_forward(base.block, config)
    without: dict[str, Any] = dict.fromkeys(("query", "key", "value", "attention_output"))
    mixing = replace(attending, **without, state_space=_state_space(config))
    kinds = {"full_attention": attending, "linear_attention": mixing}
    blocks = tuple(kinds[kind] for kind in layer_kinds(config, tuple(kinds)))
    return replace(
        base,
        feed_forward=positive(config, "shared_intermediate_size"),
        block=blocks[0],
        block_kinds=blocks,
        rope=base.rope if rotates else None,
    )


def _with_feed_forward(block: BlockNames, config: dict[str, Any]) -> BlockNames:
    """The part that every token passes, and experts beside it where the model has them."""
    width = positive(config, "shared_intermediate_size")
    dense = replace(block, gate=None, up=None, fused_gate_up=SHARED_UP, down=SHARED_DOWN)
    if config["num_local_experts"] == 0:
        return dense
    found = picking(dense, config, "num_local_experts", False, positive(config, "intermediate_size"), INSIDE)
    assert found.experts is not None
    shared = SharedExpert(down=SHARED_DOWN, width=width, fused_gate_up=SHARED_UP)
    experts = replace(found.experts, of_picked=True, router=f"{INSIDE}.router", shared=shared)
    return replace(found, fused_gate_up=None, experts=experts)


def _state_space(config: dict[str, Any]) -> StateSpace:
    groups = positive(config, "mamba_n_groups")
    return checked(
        StateSpace(
            input="mamba.in_proj",
            output="mamba.out_proj",
            kernel="mamba.conv1d",
            rate="mamba.A_log",
            bias="mamba.dt_bias",
            skip="mamba.D",
            norm="mamba.norm",
            activation=activation(config, "hidden_act"),
            heads=positive(config, "mamba_n_heads"),
            groups=groups,
            head_dim=positive(config, "mamba_d_head"),
            state_size=positive(config, "mamba_d_state"),
            width=positive(config, "mamba_d_conv"),
            norm_groups=groups,
            **limits(config),  # type: ignore[arg-type]
        )
    )
