"""Nemotron-H: each block is Mamba-2, attention without positions, a plain feed-forward part, or picked experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import activation, epsilon, flag, number, positive
from export.graph.archs._experts import picking
from export.graph.archs._state_space import checked
from export.graph.parts import SharedExpert, StateSpace
from export.graph.spec import BlockNames, ModelSpec

_MIXING = BlockNames(attention_norm="norm", attention_output=None, mlp_norm=None, down=None)
_ATTENTION = replace(
    _MIXING, query="mixer.q_proj", key="mixer.k_proj", value="mixer.v_proj", attention_output="mixer.o_proj"
)
_DENSE = BlockNames(
    attention_norm=None, attention_output=None, mlp_norm="norm", up="mixer.up_proj", down="mixer.down_proj"
)
_FLOOR = 1e-20  # added to the sum of a token's weights


def spec(config: dict[str, Any]) -> ModelSpec:
    positive(config, "chunk_size")  # of no matter to the values, but transformers divides by it
    kinds = config["layers_block_type"]
    if not isinstance(kinds, list) or not kinds:
        raise InputError("config.json: layers_block_type must list the layers")
    known = {
        "linear_attention": lambda: replace(_MIXING, state_space=_state_space(config)),
        "full_attention": lambda: _ATTENTION,
        "mlp": lambda: _DENSE,
        "moe": lambda: _experts(config),
    }
    for kind in kinds:
        if kind not in known:
            raise InputError(f"config.json: layers_block_type {kind!r} is not supported for nemotron_h")
    blocks = {kind: known[kind]() for kind in dict.fromkeys(kinds)}
    heads, kv_heads = positive(config, "num_attention_heads"), positive(config, "num_key_value_heads")
    if heads % kv_heads:
        raise InputError(
            f"config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
        )
    return ModelSpec(
        model_type=config["model_type"],
        hidden_size=positive(config, "hidden_size"),
        layers=len(kinds),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=positive(config, "head_dim"),
        feed_forward=positive(config, "intermediate_size"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, "max_position_embeddings"),
        norm="rms",
        norm_epsilon=epsilon(config, "layer_norm_epsilon"),
        activation=activation(config, "mlp_hidden_act"),
        block_prefix="model.layers.{layer}.",
        block=blocks[kinds[0]],
        block_kinds=tuple(blocks[kind] for kind in kinds),
        embedding="model.embeddings",
        final_norm="model.norm_f",
        head="lm_head",
        tied_head=False,  # whatever the field says: the class ties nothing
    )


def _experts(config: dict[str, Any]) -> BlockNames:
    if config["moe_latent_size"] is not None or config["n_group"] != 1 or config["topk_group"] != 1:
        raise InputError("config.json: moe_latent_size, n_group and topk_group are not supported for nemotron_h")
    width, normalised = positive(config, "moe_intermediate_size"), flag(config, "norm_topk_prob")
    names = picking(replace(_DENSE, up=None), config, "n_routed_experts", normalised, width, "mixer")
    shared = SharedExpert(
        up="mixer.shared_experts.up_proj",
        down="mixer.shared_experts.down_proj",
        width=positive(config, "moe_shared_expert_intermediate_size"),
    )
    assert names.experts is not None
    experts = replace(
        names.experts,
        sigmoid=True,
        pick_bias="mixer.gate.e_score_correction_bias",
        floor=_FLOOR if normalised else 0.0,
        scale=number(config, "routed_scaling_factor"),
        shared=shared,
    )
    return replace(names, gate=None, experts=experts)


def _state_space(config: dict[str, Any]) -> StateSpace:
    groups = positive(config, "n_groups")
    return checked(
        StateSpace(
            input="mixer.in_proj",
            output="mixer.out_proj",
            kernel="mixer.conv1d",
            rate="mixer.A_log",
            bias="mixer.dt_bias",
            skip="mixer.D",
            norm="mixer.norm",
            activation=activation(config, "mamba_hidden_act"),
            heads=positive(config, "mamba_num_heads"),
            groups=groups,
            head_dim=positive(config, "mamba_head_dim"),
            state_size=positive(config, "ssm_state_size"),
            width=positive(config, "conv_kernel"),
            norm_groups=groups,
            least_step=_least_step(config),
        )
    )


def _least_step(config: dict[str, Any]) -> float:
    """`time_step_min`, which the class takes in place of `time_step_limit`."""
    least = config["time_step_min"]
    if type(least) not in (int, float) or not -1e30 < least < 1e30:
        raise InputError(f"config.json: time_step_min must be a number, not {least!r}")
    return float(least)
